"""BLAS, the library that multiplies matrices for NumPy: choose its kernel, and describe it.

OpenBLAS chooses its kernel by the processor's family number. It treats an AMD processor that is
newer than itself as a "Haswell" (AVX2), at half of the possible speed (matrix products at 245
instead of 450 GFLOP/s, measured on two cores of an AMD EPYC of family 26 with NumPy 2.4.6). Naming
the kernel helps, but only before NumPy is loaded: the command line does it, an imported library
cannot. The kernel is named only if the processor has all instructions that it uses.
"""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# The instruction sets that OpenBLAS' SkylakeX kernels are compiled for.
NEEDED = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def choose_kernel(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Set OPENBLAS_CORETYPE for an AMD processor with AVX-512; returns the value set, or None."""
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
    """The OpenBLAS that NumPy has loaded: kernel name, and functions to get and set its threads."""

    kernel: str
    threads: Callable[[], int]
    use: Callable[[int], None]


@cache
def openblas() -> OpenBLAS | None:
    """The OpenBLAS of NumPy's wheel; None if NumPy uses another BLAS."""
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
    """Name and version of NumPy's BLAS, and for OpenBLAS its kernel and threads."""
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    built = config["Build Dependencies"]["blas"]
    text = f"{built['name']} {built['version']}"
    if blas := openblas():
        text += f", kernel {blas.kernel}, {blas.threads()} threads"
    asked = os.environ.get("OPENBLAS_CORETYPE")
    return text + (f" (OPENBLAS_CORETYPE={asked})" if asked else "")


def simd() -> list[str]:
    """The vector instruction sets that NumPy found on this processor."""
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    found: list[str] = config.get("SIMD Extensions", {}).get("found", [])
    return found
