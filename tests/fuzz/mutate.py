"""Damage files: change any bytes, or make changes that keep a format's structure.

Random damage rarely passes the first check. So JSON is changed as JSON, a pickle opcode by opcode
in a rewritten archive, and TensorFlow's index below its checksums.
"""

import io
import json
import pickletools
import re
import struct
import zipfile

from foreign_files import masked, sorted_table

EDGES = (0, 1, 2, 3, 127, 128, 255, 256, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
         2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63))  # fmt: skip
MOST = 200_000  # bytes of a file: larger ones only take time


def mutate(rng, files, pool, words=()):
    """Return a damaged copy of an input; `pool` has pieces of other inputs."""
    files = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        name = rng.choice(list(files))
        others = [other[name] for other in pool if name in other]
        data, other = files[name], rng.choice(others or [b""])
        change = _bytes if rng.random() < 0.25 else _structured(name, data)
        try:
            files[name] = change(rng, data, other, words)[:MOST]
        except Exception:  # of many libraries: this file had lost its frame before
            files[name] = _bytes(rng, data, other)[:MOST]
        if rng.random() < 0.01:
            del files[name]
            return files or {name: b""}
    return files


def _structured(name, data):
    if name.endswith(".json"):
        return _json
    if name.endswith(".safetensors"):
        return _safetensors
    if name.endswith(".index"):
        return _tensorflow
    if data.startswith(b"PK"):
        return _zip
    return _stream if name.endswith((".pt", "model.bin")) else _bytes


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


def _bytes(rng, data, other=b"", words=()):
    out = bytearray(data or b"\0")
    # Half of all damage to the first and last of it, where a file says what it is.
    at = rng.choice((rng.randrange(len(out)), rng.randrange(min(len(out), 64)),
                     max(0, len(out) - 1 - rng.randrange(64))))  # fmt: skip
    size = rng.choice((1, 1, 2, 4, 8, 16, 64))
    match rng.randrange(9):
        case 0:
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            out[at] = rng.randrange(256)
        case 2:
            del out[at : at + size]
        case 3:
            out[at:at] = rng.randbytes(size)
        case 4:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((*EDGES, len(data))) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        case 5:
            del out[at:]
        case 6 if other:
            cut = rng.randrange(len(other))
            out[at : at + size] = other[cut : cut + rng.choice((size, len(other)))]
        case 7:
            out[at:at] = out[at : at + size] * rng.choice((1, 2, 10, 1000))
        case _:
            word = rng.choice(words).encode() if words else b"\xff" * size
            out[at : at + rng.choice((0, len(word)))] = word
    return bytes(out)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


class _Pairs(list):
    """A JSON object as [key, value] lists, so that it can have a key twice."""


class _Raw(str):
    """JSON text that is written unchanged."""


VALUES = (
    *EDGES, None, True, False, 0.5, -0.0, "", "a", "0", "\0", "a\nb", "\ud800", "\x1b[2J", "é", [],
    {}, [[]], [0], [None], "NaN", _Raw("NaN"), _Raw("1e999"), _Raw("-Infinity"), _Raw("1.0"),
    _Raw("1" * 5000), _Raw("-0"), _Raw('{"a":1,"a":2}'),
)  # fmt: skip


def _json(rng, data, other=b"", words=()):
    if rng.random() < 0.01:
        return b"\xef\xbb\xbf" + data
    tree = [json.loads(data, object_pairs_hook=lambda pairs: _Pairs(map(list, pairs)))]
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(rng, tree, words)
    text = _dump(tree[0])
    return text.encode("utf-8", "surrogatepass")


def _change(rng, tree, words):
    """Change one place of a tree, as likely near its root as among its many leaves."""
    node = tree
    while True:
        inner = [n for n in node if isinstance(n, list)]
        if not inner or (node is not tree and rng.random() < 0.3):
            break
        node = rng.choice(inner)
    if not node:
        node.append(["a", 0] if isinstance(node, _Pairs) else 0)
        return
    at = rng.randrange(len(node))
    pair = isinstance(node, _Pairs)
    value = node[at][1] if pair else node[at]
    match rng.randrange(8):
        case 0:
            del node[at]
            return
        case 1:  # twice, or twice with another value
            node.insert(at, [node[at][0], 0] if pair and rng.random() < 0.5 else node[at])
            return
        case 2 if pair:
            node[at][0] = rng.choice((*words, *(p[0] for p in node), "", "\ud800", "a\nb", "0"))
            return
        case 3 if words and pair:
            node.append([rng.choice(words), rng.choice(VALUES)])
            return
        case 4 if type(value) in (int, float):
            value += rng.choice((-1, 1, value, -2 * value))
        case 4 if type(value) is str:
            cut = rng.randrange(len(value) + 1)
            value = value[:cut] + rng.choice(("", " ", "Ġ", "\n", "\ud800", "x")) + value[cut + 1 :]
        case 5:
            depth = rng.choice((1, 2, 60, 127, 128, rng.randrange(900, 1000), 100_000))
            start, end = rng.choice((("[", "]"), ('{"a":', "}")))
            value = _Raw(start * depth + "0" + end * depth)
        case 6:
            value = rng.choice((*words, *VALUES))
        case _:
            value = rng.choice(VALUES)
    if pair and not isinstance(node[at], str):
        node[at] = [node[at][0], value]  # a new one: it may stand elsewhere as well
    else:
        node[at] = value


def _dump(node):
    if isinstance(node, _Raw):
        return str(node)
    if isinstance(node, _Pairs):
        return "{" + ",".join(f"{_dump(key)}:{_dump(value)}" for key, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(_dump, node)) + "]"
    return json.dumps(node)


def _safetensors(rng, data, other=b"", words=()):
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.1:
        body = _bytes(rng, body)
    elif rng.random() < 0.1:
        header = _bytes(rng, header)
    else:
        header = _json(rng, header, words=words)
    return struct.pack("<Q", len(header)) + header + body


# ── pickles ──────────────────────────────────────────────────────────────────────────────────────

TEXT = b"X\1\0\0\0"
SNIPPETS = (
    b"N", b"\x88", b"\x89", b"(", b"t", b")", b"\x85", b"\x86", b"\x87", b"]", b"}", b"a", b"e",
    b"l", b"d", b"s", b"u", b"R", b"Q", b"b", b"0", b"1", b"2", b"q\0", b"q\1", b"h\0", b"h\1",
    b"\x94", b"j\0\0\0\0", b"r\xff\xff\xff\x7f", b"p99999999999999999999\n", b"g-1\n", b"\x93",
    b"\x81", b"\x80\5", b"\x95" + bytes(8), b"\x95" + b"\xff" * 8, b"P0\n", b"S'a'\n", b"S\"\n",
    b"V\\ud800\n", b"U\1a", b"C\1a", b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\xff",
    b"\x8d" + b"\xff" * 7 + b"\x7f",
    b"\x8b\xff\xff\xff\x7f", b"\x8b\0\0\0\x80", b"I1\n", b"I01\n", b"L9L\n", b"F1e999\n",
    b"I" + b"9" * 5000 + b"\n", b"G\x7f\xf8" + bytes(6), TEXT + b"\n", TEXT + b"\x1b", TEXT + b"0",
    b"cposix\nsystem\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"ctorch\nfloat32\n",
    b"ctorch\nFloatStorage\n", b"ctorch\nLongStorage\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._utils\n_rebuild_tensor\n", b"\x8c\5torch\x8c\4Size\x93", b"\x96" + bytes(8), b"\x8f",
)  # fmt: skip


def _pickle(rng, data):
    """Make one to three changes to the opcodes of a pickle; the bytes after its end stay."""
    codes, rest = _opcodes(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, to = rng.randrange(len(codes)), rng.randrange(len(codes))
        match rng.randrange(9):
            case 0:
                del codes[at : at + rng.choice((1, 1, 5))]
            case 1:
                codes[at:at] = codes[to : to + rng.choice((1, 5, 30))]
            case 2:
                codes[at], codes[to] = codes[to], codes[at]
            case 3:
                codes.insert(at, rng.choice(SNIPPETS))
            case 4:
                codes[at] = rng.choice(SNIPPETS)
            case 5:  # sizes, strides, offsets
                numbers = [n for n, code in enumerate(codes) if code[:1] in b"KMJ\x8a"]
                codes[rng.choice(numbers)] = _number(rng)
            case 6:  # a text for a text, a class for a class
                same = [code for code in codes if code[:1] == codes[at][:1]]
                codes[at] = rng.choice(same)
            case 7:
                part = b"".join(codes[at : at + rng.choice((1, 2, 4, 8))])
                codes[at:at] = [part * rng.choice((2, 100, 1000, 10_000))]
            case _:
                codes[at:at] = [_growing(rng)]
        codes = codes or [b"."]
    return b"".join(codes) + rest


def _opcodes(data):
    """A pickle's opcodes with their arguments, and the bytes after its end."""
    stream = io.BytesIO(data)
    places = [at for _, _, at in pickletools.genops(stream)]
    ends = [*places[1:], stream.tell()]
    return [data[a:b] for a, b in zip(places, ends, strict=True)], data[stream.tell() :]


def _number(rng):
    value = rng.choice((*EDGES, 2**100)) if rng.random() < 0.5 else rng.randrange(24)
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def _growing(rng):
    """A value that is small in the file but large when read: nested, or doubled many times."""
    n = rng.choice((5, 40, 1000))
    twice = rng.choice((b"h\x63h\x63\x86q\x63", b"(h\x63h\x63lq\x63"))
    return rng.choice((
        b"N" + b"\x85" * n,
        b"(" * n + b"N" + rng.choice((b"t", b"l")) * n,
        b"(Nq\x63" + twice * n + b"l",
        b"((" + b"N" * n + b"lq\x62" + b"ctorch\nSize\nh\x62\x85R" * n + b"l",
    ))  # fmt: skip


def _zip(rng, data, other=b"", words=()):
    """Change one entry and rewrite the archive with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [[info.filename, archive.read(info)] for info in archive.infolist()]
    pickles = [entry for entry in entries if entry[0].endswith(".pkl")]
    entry = rng.choice(pickles if pickles and rng.random() < 0.7 else entries)
    if entry in pickles:
        entry[1] = _pickle(rng, entry[1])
    else:
        match rng.randrange(6):
            case 0:
                entries.remove(entry)
            case 1:
                entries.append([rng.choice(entries)[0], entry[1]])
            case 2:
                entry[0] = rng.choice(("../a", "data.pkl", "archive/data/00", "a/data.pkl"))
            case 3:
                entry[1] = entry[1][: -rng.choice((1, 4, 8))]
            case _:
                entry[1] = _bytes(rng, entry[1])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        taken = set()
        for name, content in entries:
            while name in taken:  # twice is bytes' affair: zipfile warns
                name += "_"
            taken.add(name)
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def _stream(rng, data, other=b"", words=()):
    """Change one of the five pickles at the start of an old file."""
    parts, rest = [], data
    for _ in range(5):
        codes, after = _opcodes(rest)
        parts.append(b"".join(codes))
        rest = after
    at = rng.choice((0, 1, 2, 3, 3, 3, 3, 4))
    parts[at] = _pickle(rng, parts[at])
    return b"".join(parts) + (rest if rng.random() < 0.9 else _bytes(rng, rest))


# ── TensorFlow ───────────────────────────────────────────────────────────────────────────────────


def _tensorflow(rng, data, other=b"", words=()):
    """Change an entry and rewrite the table, or damage it below the checksums."""
    if rng.random() < 0.4:
        return _with_sums(bytearray(_bytes(rng, data)))
    pairs = [pair for at in _places(data) for pair in _pairs(data, *at)]
    n = rng.randrange(len(pairs))
    name, value = pairs[n]
    match rng.randrange(7):
        case 0:
            del pairs[n]
        case 1:
            pairs.insert(n, (name, rng.choice(pairs)[1]))
        case 2:
            pairs[n] = (_bytes(rng, name), value)
        case 3:
            pairs[n] = (rng.choice(pairs)[0], value)
        case 4:
            pairs[n] = (name, _varints(rng, value))
        case _:
            pairs[n] = (name, _bytes(rng, value, rng.choice(pairs)[1]))
    if rng.random() < 0.8:
        pairs.sort(key=lambda pair: pair[0])
    return sorted_table(pairs, rng.choice((1, 3, 20)))


def _varints(rng, value):
    """Change one number after a tag of a protocol buffer."""
    places = [match.start() for match in re.finditer(rb"[\x08\x18\x20\x28\x30]", value)]
    at = rng.choice(places) + 1
    end = at
    while end < len(value) - 1 and value[end] > 127:
        end += 1
    return value[:at] + _varint(rng.choice(EDGES) % 2**64) + value[end + 1 :]


def _varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def _read(data, at):
    """Return a varint, and the position after it."""
    value = shift = 0
    while data[at] > 127:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _directory(data):
    """Where the index block is: the second of the two places in the footer."""
    at = len(data) - 48
    for _ in range(2):
        _, at = _read(data, at)
    offset, at = _read(data, at)
    return offset, _read(data, at)[0]


def _places(data):
    places = []
    for _, place in _pairs(data, *_directory(data)):
        offset, at = _read(place, 0)
        places.append((offset, _read(place, at)[0]))
    return places


def _pairs(data, offset, size):
    block = data[offset : offset + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    at, key, pairs = 0, b"", []
    while at < end:
        shared, at = _read(block, at)
        own, at = _read(block, at)
        length, at = _read(block, at)
        key = key[:shared] + block[at : at + own]
        pairs.append((key, block[at + own : at + own + length]))
        at += own + length
    return pairs


def _with_sums(data):
    """Recompute the checksums of a table's blocks, as far as the blocks can be found."""
    try:
        offset, size = _directory(data)
        for at, length in ((offset, size), *_places(bytes(data))):
            end = at + length + 1
            data[end : end + 4] = struct.pack("<I", masked(data[at:end]))
    except (LookupError, ValueError, OverflowError, MemoryError, struct.error):
        pass
    return bytes(data)
