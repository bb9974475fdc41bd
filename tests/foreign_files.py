"""Write files in other programs' formats from the formats' descriptions, without their libraries.

PyTorch's (zip archive and stream), TensorFlow's, nanoGPT's and llm.c's: what the package reads, for
tests without PyTorch and TensorFlow. `test_torch.py` reads files that PyTorch writes.
"""

import io
import struct
import zipfile
from typing import NamedTuple

import numpy as np

TORCH = {"f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage",
         "u1": "ByteStorage", "u2": "BFloat16Storage"}  # fmt: skip


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    """A function that a pickle would call, and its arguments."""

    function: Global
    arguments: tuple


class Reference(NamedTuple):
    """A pickle's reference to a storage: a persistent id."""

    entry: tuple


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED = Global("collections", "OrderedDict")


def pickled(value, protocol=2):
    """Return a pickle of protocol 2 (https://docs.python.org/3/library/pickletools)."""
    return b"\x80" + bytes([protocol]) + _code(value) + b"."


def _code(v):
    if v is None:
        return b"N"
    if v is True or v is False:
        return b"\x88" if v else b"\x89"
    if isinstance(v, Global):
        return f"c{v.module}\n{v.name}\n".encode()
    if isinstance(v, Call):
        return _code(v.function) + _code(v.arguments) + b"R"
    if isinstance(v, Reference):
        return _code(v.entry) + b"Q"
    if isinstance(v, int):
        if 0 <= v < 2**31:
            return b"J" + struct.pack("<i", v)
        data = v.to_bytes(v.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(v, float):
        return b"G" + struct.pack(">d", v)
    if isinstance(v, str):
        data = v.encode()
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(v, tuple):
        return b"(" + b"".join(map(_code, v)) + b"t"
    if isinstance(v, list):
        return b"](" + b"".join(map(_code, v)) + b"e"
    if isinstance(v, dict):
        return b"}(" + b"".join(_code(x) for pair in v.items() for x in pair) + b"u"
    raise TypeError(type(v))


def storage_of(key, array, count=None):
    kind = Global("torch", TORCH[array.dtype.str[1:]])
    return Reference(("storage", kind, key, "cpu", array.size if count is None else count))


def tensor_of(key, array, offset=0, shape=None, strides=None, count=None):
    """A tensor of a storage; PyTorch counts strides in elements."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    arguments = (storage_of(key, array, count), offset, shape, strides, False, Call(ORDERED, ()))
    return Call(REBUILD, arguments)


def state(arrays):
    """{name: tensor} of {name: array}, each with its own storage, and the storages by key."""
    keys = {name: str(n) for n, name in enumerate(arrays)}
    table = {name: tensor_of(keys[name], array) for name, array in arrays.items()}
    return table, {keys[name]: array for name, array in arrays.items()}


def torch_zip(contents, storages, prefix="archive", compress=zipfile.ZIP_STORED, order="little"):
    """As torch.save writes since 1.6: storages begin at multiples of 64."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        archive.writestr(f"{prefix}/data.pkl", pickled(contents))
        if order:
            archive.writestr(f"{prefix}/byteorder", order)
        for key, array in storages.items():
            info = zipfile.ZipInfo(f"{prefix}/data/{key}")
            info.compress_type = compress
            gap = -(file.tell() + 30 + len(info.filename) + 4) % 64
            info.extra = struct.pack("<HH", 0x4246, gap) + b"Z" * gap
            archive.writestr(info, array.tobytes())
        archive.writestr(f"{prefix}/version", "3\n")
    return file.getvalue()


def torch_stream(contents, storages, little=True):
    """As torch.save wrote before 1.6: pickles, then each storage after its length."""
    system = {"protocol_version": 1001, "little_endian": little,
              "type_sizes": {"short": 2, "int": 4, "long": 4}}  # fmt: skip
    parts = [0x1950A86A20F9469CFC6C, 1001, system, contents, sorted(storages)]
    data = b"".join(map(pickled, parts))
    for key in sorted(storages):
        data += struct.pack("<q", storages[key].size) + storages[key].tobytes()
    return data


# ── TensorFlow ───────────────────────────────────────────────────────────────────────────────────


def masked(data):
    import google_crc32c

    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(pairs, every=16):
    """A block of a sorted table, with each key as its difference from the one before."""
    data, restarts, last = b"", [], b""
    for n, (key, value) in enumerate(pairs):
        shared = 0
        if n % every == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        data += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return data + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


TYPES = {"f4": 1, "f8": 2, "i1": 6, "i8": 9, "u2": 14, "f2": 19}  # types.proto


def tensorflow(arrays, per_block=20, kind=b"\0"):
    """model.ckpt.index and its data file for {name: array}."""
    data, entries = b"", [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name, array in sorted(arrays.items()):
        raw = array.tobytes()
        shape = b"".join(field(2, field(1, n)) for n in array.shape)
        value = field(1, TYPES[array.dtype.str[1:]])
        value += field(2, shape)
        if data:
            value += field(4, len(data))
        value += field(5, len(raw)) + varint(6 << 3 | 5) + struct.pack("<I", masked(raw))
        entries.append((name.encode(), value))
        data += raw
    return sorted_table(entries, per_block, kind), data


def sorted_table(entries, per_block=20, kind=b"\0"):
    """A table as LevelDB writes them, of [(key, value)] in order."""
    table, places = b"", []

    def put(pairs):
        nonlocal table
        body = block(pairs) + kind
        at = varint(len(table)) + varint(len(body) - 1)
        table += body + struct.pack("<I", masked(body))
        return at

    for i in range(0, len(entries), per_block):
        pairs = entries[i : i + per_block]
        places.append((pairs[-1][0] + b"~", put(pairs)))
    footer = put([]) + put(places)
    table += footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return table


def openai_names(params):
    """OpenAI's name: array, with a leading axis for former convolutions, of a tree's tensors."""
    found = {}
    for name, array in params.items():
        parts = name.split(".")
        if parts[0] == "h":
            parts[:2] = [f"h{parts[1]}"]
        leaf = parts.pop()
        if parts[-1] in ("wte", "wpe"):
            found["/".join(["model", *parts])] = array
            continue
        norm = parts[-1].startswith("ln_")
        leaf = "b" if leaf == "bias" else "g" if norm else "w"
        found["/".join(["model", *parts, leaf])] = array[None] if leaf == "w" else array
    return found


def llmc(params, config):
    """A checkpoint of llm.c, float32, vocabulary not padded, from {name: array} of a tree."""
    leaves = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    names = ["wte.weight", "wpe.weight"]
    for leaf in (f"{part}.{end}" for part in leaves for end in ("weight", "bias")):
        names += [f"h.{i}.{leaf}" for i in range(config.n_layer)]
    arrays = [params[name] for name in (*names, "ln_f.weight", "ln_f.bias")]
    turned = [a.T if ".c_" in n and a.ndim == 2 else a for n, a in zip(names, arrays, strict=False)]
    header = np.zeros(256, "<i4")
    header[:7] = (20240326, 1, config.n_positions, config.vocab_size, config.n_layer,
                  config.n_head, config.n_embd)  # fmt: skip
    return header.tobytes() + b"".join(a.tobytes() for a in (*turned, *arrays[len(names) :]))
