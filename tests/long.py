"""Run the long checks before a release, which `.ci/run` leaves out.

    bash .ci/long                  checks that have not passed with this source; then the table
    bash .ci/long fuzz soak        checks whose names begin with these words
    bash .ci/long --list           all checks
    bash .ci/long --table          the results so far

A passed check runs again only after the source changes; a failed or interrupted one runs again.
The output of each check is in build/long, with the results.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from fuzz.targets import TARGETS

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "long"
PYTEST = (sys.executable, "-m", "pytest")
WHOLE = (*PYTEST, "-m", "not long")
BUSY = "import os; first = os.getppid()\nwhile os.getppid() == first: pass"
HALF_A_MINUTE = 30

# The README's second command, by another Python.
ELSEWHERE = """
set -euo pipefail
rm -rf "$1" && python"$0" -m venv "$1"
"$1/bin/pip" install --quiet --disable-pip-version-check -e '.[test]'
"$1/bin/pytest"
"""

# Engines that take long to install, on checkpoints and graphs of ours.
PEERS = """
set -euo pipefail
python3 -m venv build/long/peers
build/long/peers/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
build/long/peers/bin/pip install --quiet --disable-pip-version-check 'transformers<5' ctranslate2 \
    openvino nncf optimum optimum-onnx onnxruntime
python -m benchmarks.peers --rounds 1 --tasks decode --python build/long/peers/bin/python
"""


def pythons() -> Iterator[str]:
    """Versions other than this one's, of which there is a Python on the PATH."""
    for minor in range(10, 20):
        version = f"3.{minor}"
        found = minor != sys.version_info.minor and shutil.which(f"python{version}")
        if found and not subprocess.run([found, "--version"], capture_output=True).returncode:
            yield version


class Check(NamedTuple):
    """A command that takes about this many minutes on two cores.

    Attributes:
        alone: nothing else may run: it uses both cores or a lot of memory.
        beside: number of processes that only keep the processor busy meanwhile.
    """

    command: tuple[str | Path, ...]
    minutes: int
    env: Mapping[str, str] = MappingProxyType({})
    alone: bool = False
    beside: int = 0


CHECKS = {
    **{
        f"fuzz {name}": Check((sys.executable, "-m", "tests.fuzz", name, "--seconds", "600"), 10)
        for name in TARGETS
    },
    **{
        f"python {version}": Check(("bash", "-c", ELSEWHERE, version, f"build/long/{version}"), 10)
        for version in pythons()
    },
    "faults": Check((sys.executable, "tests/faults.py", "--all"), 15),
    "kills": Check((sys.executable, "tests/faults.py", "--kills", "200"), 5),
    "soak": Check((*PYTEST, "tests/serve/test_serve.py::test_soak"), 30, {"SOAK_REQUESTS": "9000"}),
    "large": Check((*PYTEST, "-n0", "-m", "long"), 10, alone=True),
    "busy, once": Check((*WHOLE, "-n4"), 20, alone=True, beside=4),
    "busy, twice": Check((*WHOLE, "-n4"), 20, alone=True, beside=4),
    "peers": Check(("bash", "-c", PEERS), 30, alone=True),
    "coverage": Check(
        (*WHOLE, "--cov=npgpt2", "--cov=npgpt2_onnx", "--cov-report=term:skip-covered"), 20,
        alone=True,
    ),
    "wheels": Check((sys.executable, "tests/wheels.py"), 5),
    "export": Check((sys.executable, "-m", "benchmarks.onnx_export"), 5, alone=True),
}  # fmt: skip


class Result(NamedTuple):
    """The result of one check. `said`: its last line."""

    passed: bool
    minutes: float
    said: str


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=".ci/long", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only checks with this prefix")
    parser.add_argument("--jobs", type=int, default=2, help="checks at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="list all checks")
    parser.add_argument("--table", action="store_true", help="print the results for this source")
    args = parser.parse_args()
    chosen = [name for name in CHECKS if not args.names or name.startswith(tuple(args.names))]
    if not chosen:
        parser.error(f"got {' '.join(args.names)}, expected one of {', '.join(CHECKS)}")
    if args.jobs < 1:
        parser.error(f"--jobs: got {args.jobs}, expected 1 at least")
    if args.list:
        print("\n".join(f"{name:<20} about {CHECKS[name].minutes:>2} min" for name in chosen))
        return 0
    folder = BUILD / source()
    folder.mkdir(parents=True, exist_ok=True)
    if not args.table:
        run([name for name in chosen if not known(folder, name, passed=True)], folder, args.jobs)
    print(table(chosen, folder))
    return any(not known(folder, name, passed=True) for name in chosen)


def source() -> str:
    """A name for the tested source: the commit, and the changes since."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout

    commit, changes = git("rev-parse", "--short=12", "HEAD").decode().strip(), git("diff", "HEAD")
    for name in git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0")[:-1]:
        changes += name + (ROOT / os.fsdecode(name)).read_bytes()
    return f"{commit}-{hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit


class Running(NamedTuple):
    """The process of a check, which leads its own process group, and its start time."""

    process: "subprocess.Popen[bytes]"
    begun: float


def run(names: list[str], folder: Path, jobs: int) -> None:
    """Run several at a time, then one by one those that must run alone."""
    running: dict[str, Running] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with said_every_half_minute(running), ThreadPoolExecutor(jobs) as pool:
        try:
            together = [name for name in names if not CHECKS[name].alone]
            for begun in [pool.submit(one, name, folder, running) for name in together]:
                begun.result()
            for name in names:
                if CHECKS[name].alone:
                    pool.submit(one, name, folder, running).result()
        except BaseException:  # told to end: nothing goes on, and nothing more begins
            pool.shutdown(wait=False, cancel_futures=True)
            for check in running.copy().values():
                os.killpg(check.process.pid, signal.SIGKILL)
            raise


def one(name: str, folder: Path, running: dict[str, Running]) -> None:
    check, started = CHECKS[name], time.monotonic()
    log = folder / f"{slug(name)}.log"
    ours = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with ExitStack() as stack:
        for _ in range(check.beside):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
            stack.callback(busy.kill)
        file = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            check.command, cwd=ROOT, env=os.environ | ours | check.env, stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        running[name] = Running(process, started)
        code = process.wait()
    del running[name]
    if code == -signal.SIGKILL:  # it was broken off: nothing is known of it
        return
    lines = log.read_text(errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip(" =\r")), "").strip(" =\r")
    minutes = (time.monotonic() - started) / 60
    written = {"passed": code == 0, "minutes": round(minutes, 1), "said": said[-200:]}
    (folder / f"{slug(name)}.json").write_text(json.dumps(written) + "\n")
    print(f"{name}: {'passed' if code == 0 else f'FAILED, see {log}'}", flush=True)


@contextmanager
def said_every_half_minute(running: dict[str, Running]) -> Iterator[None]:
    """Report what runs, and for how long."""
    over = threading.Event()

    def say() -> None:
        while not over.wait(HALF_A_MINUTE):
            now, parts = time.monotonic(), []
            for name, (_, begun) in running.copy().items():
                parts.append(
                    f"{name} ({(now - begun) / 60:.1f} of about {CHECKS[name].minutes} min)"
                )
            print(f"running: {', '.join(parts)}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def known(folder: Path, name: str, passed: bool = False) -> Result | None:
    """What was found; with `passed`, None also for failed checks."""
    try:
        result = Result(**json.loads((folder / f"{slug(name)}.json").read_text()))
    except FileNotFoundError:
        return None
    return None if passed and not result.passed else result


def table(names: list[str], folder: Path) -> str:
    lines = [
        f"{folder.name}\n",
        "| check | result | minutes | its last line |",
        "|---|---|---|---|",
    ]
    for name in names:
        result = known(folder, name)
        word = "passed" if result and result.passed else "FAILED"
        cells = [word, f"{result.minutes:.1f}", result.said] if result else ["not run", "", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
