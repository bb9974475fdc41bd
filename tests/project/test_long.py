"""The runner of the long checks, with small ones: passed checks are kept, others run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import long
import pytest
from long import Check, Running
from patience import FOREVER, until, watched

PYTHON = sys.executable


@pytest.fixture
def checks(tmp_path, monkeypatch):
    """Return a function: name → the code of a check that writes its name into a file."""
    told = tmp_path / "told"

    def make(**codes):
        line = f"print('last words'); open({str(told)!r}, 'a').write('%s ');"
        found = {name: Check((PYTHON, "-c", line % name + code), 1) for name, code in codes.items()}
        monkeypatch.setattr(long, "CHECKS", found)
        monkeypatch.setattr(long, "BUILD", tmp_path / "build")
        monkeypatch.setattr(long, "source", lambda: "abc")
        return lambda: sorted(told.read_text().split()) if told.exists() else []

    return make


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", [".ci/long", *words])
        return long.main(), capsys.readouterr().out

    return call


def test_what_passed_is_kept_and_what_failed_is_run_again(checks, run, tmp_path):
    ran = checks(good="", bad="exit(3)")
    code, out = run()
    assert (code, ran()) == (1, ["bad", "good"])
    assert "| good | passed |" in out
    assert "| bad | FAILED |" in out
    assert "last words |" in out
    assert "last words" in (tmp_path / "build" / "abc" / "bad.log").read_text()
    ran = checks(good="exit(1)", bad="")
    code, out = run()
    assert (code, ran()) == (0, ["bad", "bad", "good"])
    assert "FAILED" not in out


def test_another_source_is_another_run(checks, run, monkeypatch):
    ran = checks(good="")
    run()
    monkeypatch.setattr(long, "source", lambda: "def")
    run()
    assert ran() == ["good", "good"]


def test_who_wants_to_be_alone_is(checks, run, tmp_path):
    """Two that would wait for each other, then two that find nobody else."""
    here = f"import os, time, pathlib; here = pathlib.Path({str(tmp_path)!r}); "
    meets = here + "(here / '{}').touch()\nwhile not (here / '{}').exists(): time.sleep(0.01)"
    finds = here + "os.mkdir(here / 'x'); time.sleep(0.2); os.rmdir(here / 'x')"
    checks(a=meets.format("a", "b"), b=meets.format("b", "a"), c=finds, d=finds)
    for name in "cd":
        long.CHECKS[name] = long.CHECKS[name]._replace(alone=True)
    assert run()[0] == 0


def test_names_choose(checks, run):
    ran = checks(fuzz_a="", fuzz_b="", soak="")
    code, out = run("fuzz")
    assert (code, ran()) == (0, ["fuzz_a", "fuzz_b"])
    assert "soak" not in out
    assert "| soak | not run |" in run("--table")[1]
    assert run("--list", "so")[1] == "soak                 about  1 min\n"
    with pytest.raises(SystemExit, match="2"):
        run("none")


KILLED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import long
from pathlib import Path
long.CHECKS = {name: long.Check(tuple(argv), 1) for name, argv in eval(sys.argv.pop(1)).items()}
long.BUILD, long.source = Path(sys.argv.pop(1)), lambda: "abc"
sys.exit(long.main())
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_it_may_be_killed(checks, run, tmp_path, end):
    """In the middle of a check: earlier results are kept."""
    pid = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    ran = checks(good="", waits=f"{pid}; import time; time.sleep({FOREVER})")
    commands = repr({name: check.command for name, check in long.CHECKS.items()})
    argv = [PYTHON, "-c", KILLED, str(Path(long.__file__).parent), commands, str(long.BUILD)]
    process = subprocess.Popen(
        [*argv, "--jobs", "1"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    with watched(process):
        until(lambda: ran() == ["good", "waits"])
        process.send_signal(end)
    waits = int((tmp_path / "pid").read_text())
    if end == signal.SIGKILL:  # of which it hears nothing
        os.kill(waits, signal.SIGKILL)
    assert process.returncode == (-end if end == signal.SIGKILL else 128 + end)
    until(lambda: not Path(f"/proc/{waits}").exists())
    ran = checks(good="", waits="")
    assert run()[0] == 0
    assert ran() == ["good", "waits", "waits"]


def test_others_keep_the_processor_busy_meanwhile(checks, run, monkeypatch):
    seen, real = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **more: seen.append(real(*args, **more)) or seen[-1]
    )
    checks(good="")
    monkeypatch.setitem(long.CHECKS, "good", long.CHECKS["good"]._replace(beside=2, alone=True))
    assert run()[0] == 0
    busy = [process for process in seen if process.args[-1] == long.BUSY]
    assert len(busy) == 2
    assert {process.returncode for process in busy} == {-signal.SIGKILL}


def test_a_change_of_the_tree_is_another_source(monkeypatch, tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(long, "ROOT", tmp_path)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    first = long.source()
    (tmp_path / "file").write_text("2")
    second = long.source()
    (tmp_path / "new").write_text("3")
    assert len({first, second, long.source()}) == 3
    (tmp_path / "new").unlink()
    assert long.source() == second
    subprocess.run([*git, "commit", "-q", "-a", "-m", "y"], cwd=tmp_path, check=True)
    assert len(long.source()) == 12


def test_it_says_what_runs(capsys, monkeypatch):
    monkeypatch.setattr(long, "HALF_A_MINUTE", 0.01)
    monkeypatch.setattr(long, "CHECKS", {"soak": Check(("true",), 31)})
    with long.said_every_half_minute({"soak": Running(None, time.monotonic() - 90)}):
        until(lambda: "running: soak (1.5 of about 31 min)" in capsys.readouterr().err)
