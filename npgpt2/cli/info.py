"""Show versions, BLAS and its threads, ONNX Runtime's devices, the machine, and model locations."""

import argparse
import os
import platform
import sys
from pathlib import Path

from npgpt2 import __version__
from npgpt2.base.blas import describe, simd
from npgpt2.base.errors import FileError
from npgpt2.base.threads import cores

HELP = "show versions, BLAS, devices, the machine, and where models are searched"
EXAMPLES = "example:\n  npgpt2 info"

PACKAGES = ("numpy", "safetensors", "tiktoken", "onnx", "onnxruntime")
EXTRAS = (
    "huggingface_hub", "tokenizers", "sentencepiece", "tqdm", "matplotlib", "threadpoolctl",
    "starlette", "uvicorn", "ray",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    print(f"npgpt2 {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print("packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    print("extras:   " + ", ".join(f"{name} {_version(name)}" for name in EXTRAS))
    print(f"BLAS:     {describe()}")
    print(f"ONNX:     {_providers()}")
    print(f"machine:  {machine()}")
    print("models are searched in this order:")
    print("  --model MODEL, else $NPGPT2_MODEL: " + (os.environ.get("NPGPT2_MODEL") or "not set"))
    print(f"  else the model in this package: {_embedded()}")
    print(
        "  a folder has config.json, model.safetensors, tokenizer.json or vocab.json + merges.txt"
    )
    print(f"  a name is a model on the hub; in its cache: {_hub()}")
    return 0


def _embedded() -> str:
    from npgpt2.checkpoints.hub import embedded

    try:
        return str(embedded())
    except FileError as error:
        return str(error)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _providers() -> str:
    """List the devices that ONNX Runtime can use here."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"cannot import onnxruntime ({error})"
    names = onnxruntime.get_available_providers()
    return "runs on " + ", ".join(name.removesuffix("ExecutionProvider") for name in names)


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {total / 2**30:.0f} GiB"
    return (
        f"{model}, {cores()} cores{memory}, {sys.byteorder}-endian; NumPy uses {' '.join(simd())}"
    )


def _hub() -> str:
    try:
        from huggingface_hub import constants
    except ImportError:
        return "needs huggingface_hub: pip install 'npgpt2[hub]'"
    cache = Path(constants.HF_HUB_CACHE)
    found = sorted(
        p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*")
    )
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    return f"{cache} ({', '.join(found) or 'empty'}){offline}"
