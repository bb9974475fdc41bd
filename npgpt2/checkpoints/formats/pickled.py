"""Read PyTorch's pickles with an interpreter for the few opcodes and globals that tensors need.

A pickle is a program, and Python's `pickle.load` runs it. Here a file can only create dictionaries,
lists, tuples, numbers, texts and `Tensor`s, which give the place of their values. Everything else
is an error that names it, and no function that a file names is ever called. `pickletools` decodes
the opcodes (https://docs.python.org/3/library/pickletools.html) without reading beyond the file.
"""

import math
import pickletools
from reprlib import repr as brief  # limits the text of nested and recursive objects
from typing import IO, Any, NamedTuple

from npgpt2.base.errors import CheckpointError

# PyTorch's storage classes → dtypes as in safetensors.
STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
MOST_AXES = 64
MOST_STEPS = 200_000  # opcodes: nearly three times those of gpt2-xl with its optimizer


class Global(NamedTuple):
    """The name of a Python global in the file. It is never imported."""

    name: str


class Storage(NamedTuple):
    """A flat array in the file, with its `key`; `size` is its number of values."""

    key: str
    dtype: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage; `offset` and `strides` count values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Marks the beginning of a tuple, list or dictionary on the stack."""


def load(file: IO[bytes], source: str) -> tuple[Any, dict[str, Storage]]:
    """The object of a pickle, and the storages that it names, by key.

    Raises:
        CheckpointError: it is damaged, or has an opcode or a global that no tensor needs.

    >>> import io, pickle
    >>> load(io.BytesIO(pickle.dumps({"n_layer": 12}, 2)), "config")
    ({'n_layer': 12}, {})
    >>> load(io.BytesIO(b"cposix\\nsystem\\n(S'true'\\ntR."), "model.bin")
    Traceback (most recent call last):
    npgpt2.base.errors.CheckpointError: model.bin: refused global posix.system: ...
    """
    return _Machine(source).run(file)


class _Machine:
    def __init__(self, source: str) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
        try:
            for n, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if opcode.name == "STOP":
                    return self.pop(), self.storages
                if n == MOST_STEPS:
                    raise self.refuse(f"is a pickle of more than {MOST_STEPS:,} steps")
                self.step(opcode.name, argument)
        except CheckpointError:
            raise
        except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
            why = "missing stack or memo entry" if isinstance(error, LookupError) else error
            raise self.damaged(
                f"is not a file of torch.save, or is damaged ({why or type(error).__name__})"
            ) from None
        raise self.refuse("is a pickle without an end")

    def refuse(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {why}: expected tensors. It was not executed")

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {why}. Download again")

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark where a value is expected")
        return value

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
            if at < 0:
                raise ValueError("no mark where one is expected")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        stack = self.stack
        if name in LITERALS:
            stack.append(LITERALS[name])
        elif name in VALUES:
            stack.append(argument)
        elif name in MADE:
            stack.append(MADE[name]())
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "TUPLE":
            stack.append(tuple(self.since_mark()))
        elif name in TUPLES:
            values = [self.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(values[::-1]))
        elif name == "LIST":
            stack.append(self.since_mark())
        elif name == "DICT":
            self.fill({}, self.since_mark(), push=True)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = self.since_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1]
            self.fill(stack[-1], pairs)
        elif name in ("APPEND", "APPENDS"):
            values = self.since_mark() if name == "APPENDS" else [self.pop()]
            if type(stack[-1]) is not list:
                raise ValueError("an append to an object that is not a list")
            stack[-1].extend(values)
        elif name in PUTS:
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in GETS:
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if argument is not None else [self.pop(), self.pop()][::-1]
            stack.append(self.known(".".join(parts)))
        elif name == "BINPERSID":
            stack.append(self.storage(self.pop()))
        elif name == "REDUCE":
            values = self.pop()
            stack.append(self.made(self.pop(), values))
        elif name == "BUILD":
            self.pop()  # attributes of an OrderedDict or a Parameter, such as `_metadata`
        else:
            raise self.refuse(f"refused opcode {name}")

    def fill(self, table: Any, pairs: list[Any], push: bool = False) -> None:
        if type(table) is not dict or len(pairs) % 2:
            raise ValueError("items of an object that is not a dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise self.refuse(f"has a key of type {type(key).__name__}")
            table[key] = value
        if push:
            self.stack.append(table)

    def known(self, name: str) -> Global:
        if name not in GLOBALS and name.removeprefix("torch.") not in (*STORAGES, *NAMES):
            raise self.refuse(f"refused global {name}")
        return Global(name)

    def storage(self, entry: Any) -> Storage:
        """A storage from ('storage', type, key, location, count) and, in old files, a view."""
        if not isinstance(entry, tuple) or len(entry) not in (5, 6) or entry[0] != "storage":
            raise self.refuse("has a reference that is not a storage")
        _, kind, key, _, count, *view = entry
        dtype = STORAGES.get(getattr(kind, "name", "").removeprefix("torch."))
        if dtype is None or not _count(count) or not isinstance(key, str) or any(view):
            name = brief(getattr(kind, "name", kind))
            raise self.refuse(f"has a storage of {name}, {brief(key)}, {brief(count)} values")
        storage = Storage(key, dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise self.damaged(f"has two storages named {key!r:.60}")
        return storage

    def made(self, call: Any, values: Any) -> Any:
        """The result of a call of a global, without calling it."""
        name = getattr(call, "name", None)
        if not isinstance(values, tuple):
            raise ValueError("arguments that are not a tuple")
        if name == "collections.OrderedDict" and not values:
            return {}
        if name == "torch.Size" and len(values) == 1 and len(values[0]) <= MOST_AXES:
            return tuple(values[0])
        if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return self.tensor(*values[:4])
        if name == "torch._utils._rebuild_parameter" and isinstance(values[0], Tensor):
            return values[0]
        raise self.refuse(f"refused a call of {name or type(call).__name__}")

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
        """A view, checked to stay inside its storage."""
        shapes_good = _counts(shape) and _counts(strides) and len(shape) == len(strides)
        if not (isinstance(storage, Storage) and _count(offset) and shapes_good):
            raise self.damaged(
                f"has a tensor at {brief(offset)} of shape {brief(shape)}, strides {brief(strides)}"
            )
        if len(shape) > MOST_AXES:
            raise self.damaged(f"has a tensor of {len(shape)} axes")
        reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if all(shape) and offset + reach >= storage.size:
            raise self.damaged(
                f"has a tensor that reaches value {offset + reach:,} of a storage of "
                f"{storage.size:,}"
            )
        if math.prod(shape) > storage.size:  # a view that repeats values needs more memory
            raise self.damaged(f"has a tensor of shape {shape} over {storage.size:,} values")
        return Tensor(storage, offset, shape, strides)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(map(_count, values))


LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "FLOAT", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
MADE = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
NAMES = {"float32", "float16", "bfloat16", "float64"}  # dtypes that training settings may name
GLOBALS = {
    "collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
}  # fmt: skip
