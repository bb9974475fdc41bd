"""Ctrl-C at any moment of the process: a newline, code 130, never a traceback.

The signal comes as Python begins to look for a module, by a hook that Python itself loads first.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import uncovered
from patience import PATIENCE

TINY = Path(__file__).parents[1] / "data" / "tiny"

HOOK = """
import atexit, os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED"]:
            sys.meta_path.remove(self)
            print("interrupted", flush=True)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
atexit.register(lambda: Interrupts.find_spec(hook, "the end"))
hook = sys.meta_path[0]
"""

TOKENIZE = ("tokenize", "KING", "--model", str(TINY))
EXPORT = ("export", str(TINY), "-o", "{out}")
TRAIN = ("train", str(TINY / "merges.txt"), "-o", "{out}", "--steps", "1")
MOMENTS = {
    "npgpt2.base.interrupt": TOKENIZE,
    "npgpt2.cli": TOKENIZE,
    "argparse": TOKENIZE,
    "npgpt2.base.blas": TOKENIZE,
    "npgpt2.cli.serve": TOKENIZE,
    "npgpt2.checkpoints.hub": TOKENIZE,
    "numpy": TOKENIZE,
    "numpy._core._multiarray_umath": TOKENIZE,
    "tiktoken": TOKENIZE,
    "tiktoken._tiktoken": TOKENIZE,
    "npgpt2_onnx": EXPORT,
    "onnx": EXPORT,
    "onnx.onnx_cpp2py_export": EXPORT,
    "onnxruntime": EXPORT,
    "tokenizers": TRAIN,
    "the end": TOKENIZE,
}


def console_script(folder):
    """What an installer makes of pyproject.toml's line."""
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    module, function = re.search(r'^npgpt2 = "([\w.]+):(\w+)"$', text, re.M).groups()
    script = folder / "npgpt2"
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return [str(script)]


def module(folder):
    return ["-m", "npgpt2"]


def run(folder, start, moment, argv, **options):
    (folder / "sitecustomize.py").write_text(HOOK)
    env = uncovered()
    env |= {"INTERRUPTED": moment, "PYTHONPATH": str(folder)}
    words = [word.format(out=folder / "out") for word in argv]
    return subprocess.run(
        [sys.executable, *start(folder), *words],
        capture_output=True, text=True, env=env, timeout=PATIENCE, **options,
    )  # fmt: skip


@pytest.mark.parametrize("start", [console_script, module])
@pytest.mark.parametrize(("moment", "argv"), MOMENTS.items(), ids=MOMENTS)
def test_control_c_says_a_newline(tmp_path, start, moment, argv):
    done = run(tmp_path, start, moment, argv)
    assert "interrupted" in done.stdout
    assert (done.stderr, done.returncode) == ("\n", 130)
    assert not list(tmp_path.glob("*out*"))


def ignore():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("moment", ["npgpt2.base.interrupt", "npgpt2.cli", "numpy", "the end"])
def test_control_c_that_is_ignored_stays_ignored(tmp_path, moment):
    """As of a command that a script puts into the background."""
    done = run(tmp_path, module, moment, TOKENIZE, preexec_fn=ignore)
    assert "interrupted" in done.stdout
    assert (done.stderr, done.returncode) == ("", 0)
