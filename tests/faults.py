"""Simulate failing disks and stopped processes at any one call, each in a fork of a warm process.

A command runs with its target in a watched folder. Every call that changes or opens a file there
has a number, and at one of them the call fails or a signal arrives. The preloaded `faults.c` does
this, so that calls of Rust and C++ count as well. Without a compiler, Python's own audit events
replace it; then `write` and `close` are not seen, nor calls outside Python.

200 kills, and every call with every error: python tests/faults.py --kills 200 --all
"""

import argparse
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from patience import PATIENCE
from web_packages import install

HERE = Path(__file__).resolve().parent
TINY = HERE / "data" / "tiny"
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EMFILE")}
BEFORE, HALF, AFTER = range(3)  # of the call, the signal comes
LEFT = re.compile(r"(^|/)(\.[^/]+\.(new|old)|pid)(/|$)")
Files = dict[str, str]  # name → what is there


class Fault(NamedTuple):
    """What happens at call number `at`: an error, or a signal."""

    at: int = 0
    error: int = 0
    signal: int = 0
    moment: int = BEFORE


NONE = Fault()


class Outcome(NamedTuple):
    """How a command ended: its exit code, or minus the signal, and its calls in the folder."""

    code: int
    out: str
    err: str
    calls: list[tuple[str, str]]
    seconds: float


# ── the warm process ─────────────────────────────────────────────────────────────────────────────


def build(folder: Path) -> Path | None:
    """Return the library to preload; None without a compiler or without preloading."""
    compiler = shutil.which("cc")
    if not compiler or not sys.platform.startswith("linux"):
        return None
    library = folder / "faults.so"
    argv = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    return library if subprocess.run(argv, capture_output=True).returncode == 0 else None


class Warm:
    """A process that has imported everything and runs commands in forks."""

    def __init__(self, library: Path | None) -> None:
        self.library = library
        env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        env |= {"OPENBLAS_NUM_THREADS": "1"} | ({"LD_PRELOAD": str(library)} if library else {})
        argv = [sys.executable, __file__, "--serve", str(library or "")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=env)

    def run(
        self, argv: Sequence[str], root: Path, fault: Fault = NONE, after: float | None = None
    ) -> Outcome:
        """`after`: seconds until the fault's signal comes from outside."""
        assert self.process.stdin
        assert self.process.stdout
        job = {
            "argv": [str(arg) for arg in argv],
            "root": str(root),
            "fault": fault,
            "after": after,
        }
        print(json.dumps(job), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        calls = [tuple(line.split("\t")) for line in answer.pop("calls").splitlines()]
        return Outcome(calls=calls, **answer)

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


@contextmanager
def warm() -> Iterator[Warm]:
    with tempfile.TemporaryDirectory() as folder:
        process = Warm(build(Path(folder)))
        try:
            yield process
        finally:
            process.close()


def serve(library: str) -> None:
    """Read jobs from standard input and answer each on standard output."""
    for name in (*ERRORS, "I/O"):  # strerror's texts, before a disk fails
        os.strerror(ERRORS.get(name, 0))
    _import_everything()
    for line in sys.stdin:
        print(json.dumps(_fork(library, **json.loads(line))), flush=True)


def _import_everything() -> None:
    """Import everything, and compute here once what takes long and writes nothing."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import tokenizers  # noqa: F401

    import npgpt2.train
    import npgpt2_onnx  # noqa: F401
    from npgpt2 import bench, cli  # noqa: F401
    from npgpt2.base import threads  # noqa: F401
    from npgpt2.checkpoints import convert  # noqa: F401
    from npgpt2.golden import llmc, page, report  # noqa: F401

    matplotlib.figure.Figure().savefig(os.devnull, format="png")  # finds the fonts
    model = npgpt2.GPT2.from_pretrained(TINY)
    write = sys.modules["npgpt2.golden.write"]  # the package has a function of that name
    golden = {tuple(c): write.compute(model, c, True, lambda x, _: x) for c in CASES}
    write.compute = lambda model, chosen, *_: golden[tuple(chosen)]
    bench.bench = lambda *_, **__: MEASURED


CASES = (["eight"], ["sampling"])
CELL = {"batch": 1, "context": 5, "tokens_per_second": 100.0, "of_limit": 0.5}
ENGINE = {"engine": "numpy", "precision": "fp32", "load": 0.1, "first_token": 0.2, "memory": 10**8}
MEASURED = {
    "limits": {"bandwidth": 1e10, "arithmetic": 1e11},
    "engines": [{**ENGINE, "prefill": [CELL], "decode": [CELL]}],
}


def _fork(library: str, argv: list[str], root: str, fault: list[int], after: float | None) -> Any:
    with (
        tempfile.TemporaryFile() as log,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        started = time.monotonic()
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(_child(library, argv, root, Fault(*fault), log.fileno()))
        if after is not None:
            time.sleep(after)
            os.kill(child, Fault(*fault).signal)
        status = os.waitpid(child, 0)[1]
        seconds = time.monotonic() - started
        for file in (log, out, err):
            file.seek(0)
        text = {"calls": log.read(), "out": out.read(), "err": err.read()}
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": seconds} | {k: v.decode() for k, v in text.items()}


def _child(library: str, argv: list[str], root: str, fault: Fault, log: int) -> int:
    from npgpt2 import cli

    signal.alarm(int(PATIENCE))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    at = fault if fault.at else NONE
    try:
        if library:
            import ctypes

            arm = ctypes.CDLL(library).fault_arm
            arm(root.encode(), ctypes.c_long(at.at), at.error, at.signal, at.moment, log)
        else:
            _listen(root, at, log)
        code = OTHERS[argv[0]](*argv[1:]) if argv[0] in OTHERS else cli.main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:  # before the command began, or of no command
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    return code


def _save(out: str) -> int:
    """Save a checkpoint as a program would, with a command's error message."""
    from npgpt2 import GPT2
    from npgpt2.base import errors
    from npgpt2.checkpoints.checkpoint import save

    model = GPT2.from_pretrained(TINY)
    try:
        save(Path(out), model.config, model.params)
    except errors.FileError as error:
        print(f"npgpt2: error: {error}", file=sys.stderr)
        return 4
    return 0


def _cut(out: str) -> int:
    """Make a run look killed before its last checkpoint."""
    shutil.rmtree(Path(out, "checkpoint-4"))
    return 0


def _mkdir(out: str) -> int:
    os.mkdir(out)
    return 0


OTHERS: dict[str, Callable[..., int]] = {"save": _save, "cut": _cut, "mkdir": _mkdir}


def _listen(root: str, fault: Fault, log: int) -> None:
    """Watch with Python's audit events, and with fsync, which has none."""
    events = {"os.rename": "rename", "os.mkdir": "mkdir", "os.chmod": "chmod",
              "os.remove": "remove", "os.rmdir": "remove"}  # fmt: skip
    seen = 0

    def call(name: str, path: Any, room: bool = False) -> None:
        nonlocal seen
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if not (path + "/").startswith(root + "/"):
            return
        seen += 1
        os.write(log, f"{name}\t{path}\n".encode())
        full = fault.error == errno.ENOSPC and room and 0 < fault.at < seen
        if fault.error and (seen == fault.at or full):
            raise OSError(fault.error, os.strerror(fault.error), path)
        if fault.signal and seen == fault.at:
            os.kill(os.getpid(), fault.signal)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR))
            call("open" if writes else "look", args[0], writes)
        elif event in events:
            call(events[event], args[1] if event == "os.rename" else args[0], event == "os.mkdir")

    def fsync(handle: int, real: Callable[[int], None] = os.fsync) -> None:
        call("sync", os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc") else "")
        real(handle)

    os.fsync = fsync
    sys.addaudithook(hook)


# ── what is written ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """A command that writes. {out} is its target, {given} a folder with its inputs.

    Attributes:
        argv: the command.
        old: commands that create the old state of the target.
        again: what a user runs after a fault, if it is another command.
        apart: the target's files are replaced one by one, not all at once.
    """

    argv: str
    old: tuple[str, ...] = ()
    again: str = ""
    apart: bool = False


TRAIN = (
    "train {given}/text.txt -o {out} --n-layer 1 --n-head 2 --n-embd 16 --n-positions 16 "
    "--vocab-size 300 --batch-size 2 --threads 1 --ema 0.9 --eval-every 2 --save-every 2"
)
EXPORT = "export {tiny} -o {out} --no-verify --force"
CONVERT = "convert {tiny} -o {out} --force"
GOLDEN = "golden write {out} --model {tiny} --force --cases"
PAGE = "explain {text} --model {{tiny}} --max-new-tokens 2 -o {{out}}"
SITE = "explain {text} --live {{tiny}} -o {{out}} --node-modules {{given}}/node_modules --force"
COMMANDS = {
    "convert": Case("convert {tiny} -o {out}", again=CONVERT),
    "convert over another": Case(CONVERT, (CONVERT + " --dtype float16",)),
    "convert into shards": Case(CONVERT + " --max-shard-size 300KB", (CONVERT,)),
    "export": Case("export {tiny} -o {out} --precision int8", again="export {tiny} -o {out} "
                   "--precision int8 --force"),
    "export over another": Case(EXPORT, (EXPORT + " --precision int8",)),
    "export beside the weights": Case("export {out} --share-weights --no-verify --force",
                                      ("convert {tiny} -o {out}",), apart=True),
    "export for Triton": Case("export {given}/checkpoint --share-weights --no-verify --force "
                              "--triton {out}", ("mkdir {out}",)),
    "golden write": Case(GOLDEN + " eight", (GOLDEN + " sampling",)),
    "golden llmc": Case("golden llmc {out} --model {tiny} --batch 1 --length 8"),
    "golden check --html": Case("golden check {given}/golden/golden.safetensors --against "
                                "{given}/golden --html {out}"),
    "bench": Case("bench --model {tiny} --engine numpy --plot {out}.png",
                  ("inspect --model {tiny} --plot {out}.png",)),
    "explain": Case(PAGE.format(text="king"), (PAGE.format(text="queen"),)),
    "explain --live": Case(SITE.format(text="king"), (SITE.format(text="queen"),)),
    "inspect --plot": Case("inspect --model {tiny} --plot {out}"),
    "score --html": Case("score king --model {tiny} --html {out}"),
    "tokenize --html": Case("tokenize king --model {tiny} --html {out}"),
    "generate --graph-cache": Case("generate x --model {given}/onnx --engine onnx --threads 1 "
                                   "--max-new-tokens 1 --graph-cache {out}", ("mkdir {out}",)),
    "checkpoint.save": Case("save {out}", ("convert {tiny} -o {out}",), apart=True),
    "train": Case(TRAIN + " --steps 2", again="train -o {out} --resume"),
    "train --resume": Case("train -o {out} --resume", (TRAIN + " --steps 4", "cut {out}"),
                           apart=True),
}  # fmt: skip


class Stand:
    """A command, the two states it goes between, and a folder to test it in."""

    def __init__(self, name: str, process: Warm, given: Path, folder: Path) -> None:
        self.name, self.process, self.given = name, process, given
        self.case = COMMANDS[name]
        self.place, self._template = folder / "place", folder / "template"
        self.place.mkdir(parents=True)
        for command in self.case.old:
            self.call(command)
        shutil.copytree(self.place, self._template)
        self.old = content(self.place)
        whole = self.call(self.case.argv)
        self.new, self.calls, self.seconds = content(self.place), whole.calls, whole.seconds
        assert self.calls
        assert self.new != self.old
        assert not left(self.new), left(self.new)

    def call(self, command: str, fault: Fault = NONE, after: float | None = None) -> Outcome:
        words = {"out": self.place / "out", "given": self.given, "tiny": TINY}
        argv = [word.format(**words) for word in command.split()]
        outcome = self.process.run(argv, self.place, fault, after)
        assert fault != NONE or outcome.code == 0, (argv, outcome)
        return outcome

    def begin(self) -> None:
        """Create the old state."""
        shutil.rmtree(self.place)
        shutil.copytree(self._template, self.place)

    def faults(self, most: int | None = None) -> list[Fault]:
        """Every call with every error; or this many, no two of one kind for one file."""
        numbers = range(1, len(self.calls) + 1)
        if most is None:
            return [Fault(at, error) for at in numbers for error in ERRORS.values()]
        chance, errors = random.Random(self.name), cycle(ERRORS.values())
        first = list({call: at for at, call in zip(numbers, self.calls, strict=True)}.values())
        chance.shuffle(first)
        first.sort(key=lambda at: self.calls[at - 1][0] not in ("write", "copy", "rename"))
        half = first[: most // 2]  # of those that would tear a file
        chosen = half + chance.sample(first[len(half) :], min(most, len(first)) - len(half))
        return [Fault(at, error) for at, error in zip(sorted(chosen), errors, strict=False)]

    # What is wrong after a fault is said in words; nothing where all is well.

    def fails(self, fault: Fault) -> str:
        """One call fails."""
        self.begin()
        outcome = self.call(self.case.argv, fault)
        if len(outcome.calls) < fault.at:
            return ""  # two threads, that take turns otherwise
        call, path = outcome.calls[fault.at - 1]
        there = content(self.place)
        wrong = _misspoken(outcome, fault) if outcome.code or outcome.err.count("error:") else ""
        if outcome.code == 0 and whole(there) != self.new:
            wrong = "exit code 0, and the target is not the new one"
        if left(there) and call != "remove" and "/.out.old" not in path:  # it could not clear up
            wrong = wrong or f"left over: {left(there)}"
        wrong = wrong or self.torn(there) or self.next(there)
        where = Path(path).relative_to(self.place)
        return wrong and f"{call} {where}, {errno.errorcode[fault.error]}: {wrong}: {outcome[:3]}"

    def ends(self, fault: Fault, after: float | None = None) -> tuple[int, str]:
        """A signal comes: the exit code, and what is wrong."""
        self.begin()
        outcome = self.call(self.case.argv, fault, after)
        there = content(self.place)
        wrong = ""
        program = outcome.code == -fault.signal and self.case.argv.startswith("save")
        if fault.signal != signal.SIGKILL and not program:  # which has asked for no signal
            # Before anything was begun it ends as any process does.
            if outcome.code not in (0, 130, 128 + fault.signal, -fault.signal):
                wrong = f"exit code {outcome.code}: {outcome.err}"
            if "Traceback" in outcome.err or "error:" in outcome.err:
                wrong = outcome.err
            if left(there):
                wrong = f"left over: {left(there)}"
        if outcome.code == 0 and fault.signal != signal.SIGKILL and there != self.new:
            wrong = "exit code 0, and the target is not the new one"
        wrong = wrong or self.torn(there) or self.next(there)
        last = outcome.calls[-1] if outcome.calls else ("nothing", "")
        return outcome.code, wrong and f"{fault} {after}: {' '.join(last)}: {wrong}"

    def torn(self, there: Files) -> str:
        """Return whether the target is neither the old nor the new one.

        If killed between the two renames, the old one is whole next to it; the next run finds it.
        """
        aside = {
            n[1:].replace(".old", "", 1): f for n, f in there.items() if n.startswith(".out.old")
        }
        there = whole(there)
        if not there and aside == self.old:
            return ""
        if self.case.argv.startswith("train"):
            return ""  # a run is many files; that it goes on to the same end is what counts
        if self.case.apart:
            names = there.keys() | self.old.keys()
            odd = [n for n in names if there.get(n) not in (self.old.get(n), self.new.get(n))]
            return f"torn: {sorted(odd)}" if odd else ""
        return "" if there in (self.old, self.new) else f"torn: {sorted(there)}"

    def next(self, there: Files) -> str:
        """Return whether the next run does not produce exactly the new state."""
        if there in (self.old, self.new):
            return ""  # as it began: what comes of that is known
        again = self.case.again or self.case.argv
        if self.case.argv.startswith("train") and "out/training.json" not in there:
            again = self.case.argv
        outcome = self.call(again, Fault(0, 1))
        now, new = content(self.place), self.new
        if self.case.argv.startswith("train"):  # ended by SIGTERM it saves at another step
            now, new = ({n: f for n, f in x.items() if "/checkpoint-" not in n} for x in (now, new))
        there_already = re.search("already exists|is there already", outcome.err)
        if outcome.code == 4 and there_already and now == new:
            return ""
        odd = {name for name in now.keys() | new.keys() if now.get(name) != new.get(name)}
        return f"the next run: {outcome[:3]}, differs in {sorted(odd)}" if odd else ""


def _misspoken(outcome: Outcome, fault: Fault) -> str:
    """Describe what is wrong with the message of a failed command; '' if nothing is."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("npgpt2: error: ")]
    call, path = outcome.calls[fault.at - 1]
    if call == "look" and path.endswith(".safetensors"):
        return ""  # the library calls every error in opening one "No such file"
    if outcome.code != 4:
        return f"exit code {outcome.code}, expected 4"
    if "Traceback" in outcome.err or len(lines) != 1 or not outcome.err.endswith(lines[0] + "\n"):
        return "expected one line as an error"
    if "the cache cannot be written" in lines[0]:
        return ""  # onnxruntime seldom says why
    if os.strerror(fault.error) not in lines[0] or not re.match(r"npgpt2: error: /.+: ", lines[0]):
        return "the line names no file, or not what is wrong"
    return ""


def content(folder: Path) -> Files:
    """Every file with its mode and SHA-256, every folder with its mode, without a run's seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        data = b"" if path.is_dir() else path.read_bytes()
        if path.name == "state.json" and data:
            data = json.dumps(json.loads(data) | {"seconds": 0}).encode()
        mode = stat.filemode(path.lstat().st_mode)
        name = path.relative_to(folder).as_posix()
        found[name] = f"{mode} {hashlib.sha256(data).hexdigest()}"
    return found


def left(there: Files) -> list[str]:
    """Files that should have been removed."""
    return sorted(name for name in there if LEFT.search(name))


def whole(there: Files) -> Files:
    """All other files."""
    return {name: what for name, what in there.items() if not LEFT.search(name)}


def make_given(process: Warm, folder: Path) -> Path:
    """Write the inputs of the commands."""
    folder.mkdir()
    lines = [f"{who} saw a crown in May {year}.\n" for year in range(1590, 1610) for who in "IYA"]
    (folder / "text.txt").write_text("".join(lines))
    shutil.copytree(TINY, folder / "checkpoint")
    for argv in (["golden", "write", folder / "golden", "--model", TINY, "--cases", "eight"],
                 ["export", TINY, "-o", folder / "onnx", "--no-verify"]):  # fmt: skip
        outcome = process.run(argv, folder / "nothing")
        assert outcome.code == 0, outcome
    install(folder / "node_modules")
    return folder


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────


def kill(stands: Sequence[Stand], count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Send this many SIGKILL and half as many SIGTERM or SIGINT, at a call or at any time.

    A SIGKILL after the command has ended does not count and is repeated earlier.
    """
    moments, wrong = random.Random(seed), []
    found: Counter[str] = Counter()
    others = [signal.SIGTERM, signal.SIGINT] * (count // 4)
    for number, end in enumerate([signal.SIGKILL] * count + others):
        stand = stands[number % len(stands)]
        after, at, moment = None, moments.randint(1, len(stand.calls)), moments.randrange(3)
        if moments.random() < 0.5:
            after, at = moments.uniform(0, stand.seconds), 0
        late = True
        while late:
            code, odd = stand.ends(Fault(at, 0, end, moment), after)
            found[f"{end.name}, code {code}"] += 1
            wrong += [f"{stand.name}: {odd}"] * bool(odd)
            late = code == 0 and end == signal.SIGKILL
            after, at = after and after * moments.random(), at and moments.randint(1, at)
    return found, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Faults and kills, and how the commands take them."
    )
    parser.add_argument("--kills", type=int, default=0, help="so many, over all commands")
    parser.add_argument("--all", action="store_true", help="every call with every error")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", metavar="LIBRARY", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return 0
    wrong: list[str] = []
    with warm() as process, tempfile.TemporaryDirectory() as top:
        folder = Path(top).resolve()
        given = make_given(process, folder / "given")
        stands = [Stand(name, process, given, folder / name) for name in COMMANDS]
        for stand in stands if args.all else []:
            faults = stand.faults()
            odd = [text for fault in faults if (text := stand.fails(fault))]
            print(f"{stand.name}: {len(faults)} faults, {len(odd)} wrong", flush=True)
            wrong += [f"{stand.name}: {text}" for text in odd]
        if args.kills:
            ends, odd = kill(stands, args.kills, args.seed)
            print(", ".join(f"{count} × {end}" for end, count in sorted(ends.items())))
            wrong += odd
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
