// Reads the raw files of a golden folder and checks every sha256.  node read.mjs DIR
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array, bool: Uint8Array };

export function read(folder) {
  const [head, ...lines] = readFileSync(join(folder, "index.tsv"), "utf8").trimEnd().split("\n");
  const columns = head.split("\t");
  const tensors = new Map();
  for (const line of lines) {
    const row = Object.fromEntries(line.split("\t").map((value, i) => [columns[i], value]));
    const begin = Number(row.offset);
    const bytes = readFileSync(join(folder, row.file)).subarray(begin, begin + Number(row.bytes));
    const found = createHash("sha256").update(bytes).digest("hex");
    if (found !== row.sha256) throw new Error(`${row.name}: sha256 differs`);
    const numbers = new ARRAYS[row.dtype](new Uint8Array(bytes).buffer); // a copy is aligned
    const shape = row.shape.split("x").map(Number);
    tensors.set(row.name, { shape, stride: Number(row.stride), numbers });
  }
  return tensors;
}

const tensors = read(process.argv[2]);
const logits = tensors.get("eight/logits");
if (logits) console.log("eight/logits", logits.shape.join("x"), logits.numbers[0]);
console.log(`${tensors.size} tensors, every sha256 is right`);
