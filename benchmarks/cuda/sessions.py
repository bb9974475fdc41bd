"""Sessions with what `npgpt2_onnx.Session` does not ask for, and graphs that may not open."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from benchmarks.cuda.models import NO_KERNEL
from npgpt2.base.errors import CheckpointError
from npgpt2_onnx.run.session import Session

# What ONNX Runtime says where no provider of a session has a node's kernel.
LACKING = re.compile(
    r"(Could not find an implementation|Failed to find kernel) for \S*\bGroupQueryAttention\b"
)


def opened(
    path: Path,
    device: str,
    provider_options: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> Session:
    """A graph, opened a second time where it needs options of its own.

    Args:
        provider_options: as ONNX Runtime names them, {"use_tf32": "0"}.
        profile: what the profile's file name begins with; `session.ort.end_profiling()` writes it.
    """
    session = Session(path, device)
    if provider_options or profile:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        provider = (session.provider, dict(provider_options or {}))
        session.ort = ort.InferenceSession(str(path), options, providers=[provider])
    return session


def may_refuse(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Of a graph that the device is known to have no kernel for: that it is refused is no fault.

    Any other failure is one. Where it runs, on the CPU in parts, its numbers have to be right all
    the same.
    """
    try:
        return measure() | {"known": NO_KERNEL}
    except Exception as error:  # onnxruntime's own family, one class for each code
        text = " ".join(str(error).split())
        told = isinstance(error, CheckpointError) and ": onnxruntime: " in text  # by `Session`
        if not (told or type(error).__module__.startswith("onnxruntime.")):
            raise
        if not LACKING.search(text):
            raise
        return {"known": NO_KERNEL, "refused": text[:400], "good": True}
