// Reads the raw files of a golden folder and checks every sha256.  rustc -O --edition 2021 read.rs && ./read DIR
use std::{collections::HashMap, env, error::Error, fs, path::Path};

fn sha256(data: &[u8]) -> String {
    // FIPS 180-4: the constants are the first bits of the roots of the first primes.
    let primes: Vec<u32> = (2..312u32).filter(|n| (2..*n).all(|d| n % d > 0)).collect();
    let bits = |x: f64| (x.fract() * 4294967296.0) as u32;
    let k: Vec<u32> = primes.iter().map(|p| bits(f64::from(*p).cbrt())).collect();
    let mut h: Vec<u32> = primes[..8].iter().map(|p| bits(f64::from(*p).sqrt())).collect();
    let mut padded = data.to_vec();
    padded.push(0x80);
    padded.resize((data.len() + 9).div_ceil(64) * 64 - 8, 0);
    padded.extend((data.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks(64) {
        let mut w: Vec<u32> =
            block.chunks(4).map(|b| u32::from_be_bytes(b.try_into().unwrap())).collect();
        for i in 16..64 {
            let (a, b) = (w[i - 15], w[i - 2]);
            let a = a.rotate_right(7) ^ a.rotate_right(18) ^ a >> 3;
            let b = b.rotate_right(17) ^ b.rotate_right(19) ^ b >> 10;
            w.push(w[i - 16].wrapping_add(a).wrapping_add(w[i - 7]).wrapping_add(b));
        }
        let mut s = h.clone();
        for i in 0..64 {
            let (a, e) = (s[0], s[4]);
            let one = (e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25))
                .wrapping_add((e & s[5]) ^ (!e & s[6]))
                .wrapping_add(s[7]).wrapping_add(k[i]).wrapping_add(w[i]);
            let two = (a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22))
                .wrapping_add((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
            s.rotate_right(1);
            s[4] = s[4].wrapping_add(one);
            s[0] = one.wrapping_add(two);
        }
        h.iter_mut().zip(s).for_each(|(x, y)| *x = x.wrapping_add(y));
    }
    h.iter().map(|x| format!("{x:08x}")).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).ok_or("usage: read DIR")?;
    let index = fs::read_to_string(Path::new(&folder).join("index.tsv"))?;
    let mut lines = index.lines();
    let columns: Vec<&str> = lines.next().ok_or("index.tsv: is empty")?.split('\t').collect();
    let mut count = 0;
    for line in lines {
        let row: HashMap<&str, &str> = columns.iter().copied().zip(line.split('\t')).collect();
        let data = fs::read(Path::new(&folder).join(row["file"]))?;
        let begin: usize = row["offset"].parse()?;
        let end = begin + row["bytes"].parse::<usize>()?;
        let data = data.get(begin..end).ok_or(format!("{}: is truncated", row["file"]))?;
        if sha256(data) != row["sha256"] {
            return Err(format!("{}: sha256 differs", row["name"]).into());
        }
        if row["name"] == "eight/logits" {
            let first = f32::from_le_bytes(data[..4].try_into()?);
            println!("eight/logits {} {first}", row["shape"]);
        }
        count += 1;
    }
    println!("{count} tensors, every sha256 is right");
    Ok(())
}
