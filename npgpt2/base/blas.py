"""The library that multiplies matrices for NumPy: helped to know the processor, and described.

OpenBLAS picks its kernel by the processor's family number, and takes an AMD processor newer than
itself for a "Haswell" (AVX2): half the speed of what the chip can do (matrix products of 245
instead of 450 GFLOP/s, measured on two cores of an AMD EPYC of family 26 with NumPy 2.4.6).
Naming the kernel helps, but only before NumPy is loaded; a command line can do that, a library
that is imported cannot. Never named where the processor lacks an instruction the kernel uses.
"""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# What OpenBLAS' SkylakeX kernels are compiled with.
NEEDED = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def choose_kernel(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Set OPENBLAS_CORETYPE for an AMD processor with AVX-512; returns what was set, or None."""
    if "OPENBLAS_CORETYPE" in os.environ or "numpy" in sys.modules:
        return None
    try:
        lines = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return None  # not Linux
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    vendor, flags = fields.get("vendor_id", "").strip(), set(fields.get("flags", "").split())
    if vendor != "AuthenticAMD" or not flags >= NEEDED:
        return None
    os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"
    return "SkylakeX"


class OpenBLAS(NamedTuple):
    """The one that NumPy has loaded: its kernel's name, and how many threads it uses."""

    kernel: str
    threads: Callable[[], int]
    use: Callable[[int], None]


@cache
def openblas() -> OpenBLAS | None:
    """None where NumPy has another BLAS, or one of the system's."""
    import ctypes

    import numpy as np

    for library in sorted(Path(np.__file__).parents[1].glob("numpy.libs/*openblas*")):
        blas = ctypes.CDLL(str(library))
        for suffix in ("64_", ""):
            try:
                threads, use, name = (
                    getattr(blas, f"scipy_openblas_{what}{suffix}")
                    for what in ("get_num_threads", "set_num_threads", "get_corename")
                )
            except AttributeError:
                continue
            name.restype = ctypes.c_char_p
            return OpenBLAS(name().decode(), threads, use)
    return None


def describe() -> str:
    """Which library NumPy was built with, and what it chose in this process."""
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    built = config["Build Dependencies"]["blas"]
    text = f"{built['name']} {built['version']}"
    if blas := openblas():
        text += f", kernel {blas.kernel}, {blas.threads()} threads"
    asked = os.environ.get("OPENBLAS_CORETYPE")
    return text + (f" (OPENBLAS_CORETYPE={asked})" if asked else "")


def simd() -> list[str]:
    """What NumPy found of the processor's vector instructions."""
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    found: list[str] = config.get("SIMD Extensions", {}).get("found", [])
    return found
