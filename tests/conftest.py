import os
import signal
from pathlib import Path

# Before NumPy and torch are imported: tests run beside each other, and several threads of BLAS in
# each of several processes wait for one another most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from browser import chromium, watched  # noqa: F401  (fixtures)
from cases import SMALL, formula_tensors
from hypothesis import settings

from npgpt2 import GPT2, GPT2Config
from npgpt2.base.blas import openblas
from npgpt2.model.params import build_tree

# Helpers and scripts: no tests in them, and some need torch.
collect_ignore = [
    "clients",
    "data",
    "fuzz",
    "browser.py",
    "cases.py",
    "command_line.py",
    "families.py",
    "faults.py",
    "foreign_files.py",
    "long.py",
    "lowest.py",
    "onnx_cases.py",
    "patience.py",
    "readme_commands.py",
    "refusals.py",
    "rows.py",
    "server.py",
    "snapshots.py",
    "torch_reference.py",
    "train_cases.py",
    "web_packages.py",
    "wheel.py",
    "wheels.py",
    "windows.py",
]

settings.register_profile("unhurried", deadline=None)  # another process may have the processor
settings.load_profile("unhurried")

# Tests send these to processes of their own, which would inherit that nohup, or a shell in whose
# background they run, has them ignored. What is heard, if only by nobody, is not inherited.
for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

TINY = Path(__file__).parent / "data" / "tiny"
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config):
    """Without -m, run the quick tests; for named tests, run all but the long ones."""
    if not config.option.markexpr:
        everything = config.args_source is config.ArgsSource.TESTPATHS
        config.option.markexpr = "not slow and not long" if everything else "not long"


@pytest.fixture(autouse=True, scope="session")
def _from_the_root():
    """Run doctests from the root, where tests/data/tiny is the path that a reader would type."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1])
        patch.delenv("NPGPT2_MODEL", raising=False)
        yield


@pytest.fixture
def two_threads():
    """OpenBLAS with two threads in this process."""
    blas = openblas()
    if blas is None:
        pytest.skip("NumPy has another BLAS than OpenBLAS")
    before = blas.threads()
    blas.use(2)
    yield blas
    blas.use(before)


@pytest.fixture(scope="session")
def tiny():
    """The folder of the trained checkpoint of 190,000 parameters."""
    return TINY


@pytest.fixture
def model():
    """The trained checkpoint, in float32."""
    return GPT2.from_pretrained(TINY)


@pytest.fixture
def wide():
    """The trained checkpoint, in float64."""
    return GPT2.from_pretrained(TINY, dtype="float64")


@pytest.fixture
def small():
    """A function (dtype, **config) → a small model with weights by formula."""

    def make(dtype="float64", **switches):
        config = GPT2Config(**SMALL | {"eos_token_id": None} | switches)
        tensors = formula_tensors(config)
        return GPT2(config, build_tree({k: v.astype(dtype) for k, v in tensors.items()}))

    return make


@pytest.fixture
def shared():
    """A function name → a file or folder of the shared test data; skips where it is absent."""

    def find(name):
        if not (SHARED / name).exists():
            pytest.skip(f"shared data are not here: {name}")
        return SHARED / name

    return find
