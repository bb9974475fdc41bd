"""Help OpenBLAS to know the processor.

OpenBLAS picks its kernel by the processor's family number, and takes an AMD processor newer than
itself for a "Haswell" (AVX2): half the speed of what the chip can do (matrix products of 245
instead of 450 GFLOP/s, measured on two cores of an AMD EPYC of family 26 with NumPy 2.4.6).
Naming the kernel helps, but only before NumPy is loaded; a command line can do that, a library
that is imported cannot. Never named where the processor lacks an instruction the kernel uses.
"""

import os
import sys
from pathlib import Path

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
