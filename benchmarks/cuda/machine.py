"""What the machine is, and what its memory gives: the measure of how fast decode can be."""

import ctypes
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.cuda.models import Options, Steps
from benchmarks.numpy_vs_torch import typical

PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "transformers")
# What onnxruntime's CUDA provider is linked to, and what it opens later; in the order of need.
LIBRARIES = ("cudart", "cublasLt", "cublas", "nvrtc", "curand", "cufft", "cudnn")
COPIED = 1 << 31  # bytes: several times any cache


def steps(options: Options) -> Steps:
    yield "versions", versions
    yield "onnxruntime", lambda: provider(options.device)
    yield "bandwidth", lambda: bandwidth(options.device)


def versions() -> dict[str, Any]:
    """Of the GPU's driver and of packages; None: not installed."""
    from importlib.metadata import PackageNotFoundError, version

    from npgpt2.cli.info import machine

    found: dict[str, Any] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    gpu = None
    with suppress(OSError, subprocess.CalledProcessError):
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "machine": machine(), "gpu": gpu, "python": platform.python_version(), "packages": found,
    }  # fmt: skip


def provider(device: str) -> dict[str, Any]:
    """The onnxruntime that is imported here. Raises where it cannot start on the device."""
    import numpy as np
    import onnxruntime as ort

    where = str(Path(ort.__file__).parent)
    about = {"version": ort.__version__, "folder": where, "build": ort.get_build_info(),
             "providers": ort.get_available_providers()}  # fmt: skip
    ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), device, 0)
    return about


def libraries() -> None:
    """Load the libraries of the packages nvidia-*, wherever on the path these are installed.

    onnxruntime looks for them beside itself, and it may lie in a folder of its own.
    """
    places = [Path(entry) / "nvidia" for entry in sys.path if (Path(entry) / "nvidia").is_dir()]
    for name in LIBRARIES:
        files = (path for place in places for path in sorted(place.glob(f"*/lib/lib{name}.so.*")))
        for path in files:
            with suppress(OSError):
                ctypes.CDLL(str(path))
                break


def bandwidth(device: str) -> dict[str, Any]:
    """Bytes per second.

    Returns:
        bandwidth: of the memory that the weights lie in; "how" it was measured.
        to_device: of a copy from the host's pinned memory, on a GPU.
    """
    if device == "cpu":
        from npgpt2.bench import measure

        read = measure({"variant": None})["bandwidth"]
        return {"bandwidth": read, "how": "NumPy reads 0.5 GB"}
    try:
        import torch
    except ImportError:
        return {"bandwidth": None, "how": "not measured: pip install torch"}
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    host = torch.ones(COPIED // 4, dtype=torch.uint8).pin_memory()

    def finished(copy: Callable[[], Any]) -> Callable[[], None]:
        def work() -> None:
            copy()
            torch.cuda.synchronize()

        return work

    inside = typical(11, finished(lambda: target.copy_(source)))
    over = typical(6, finished(lambda: target[: len(host)].copy_(host)))
    return {
        "bandwidth": 2 * COPIED / inside,
        "how": "PyTorch copies 2.1 GB, read and written",
        "to_device": len(host) / over,
    }
