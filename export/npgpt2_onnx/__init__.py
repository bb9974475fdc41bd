"""GPT-2 as ONNX, without PyTorch: `from npgpt2_onnx import export, OnnxModel`.

Names are imported on first use, because onnx and onnxruntime are large.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npgpt2_onnx.run.model import OnnxModel as OnnxModel
    from npgpt2_onnx.run.model import OnnxWithHead as OnnxWithHead
    from npgpt2_onnx.run.session import Session as Session
    from npgpt2_onnx.write.save import export as export
    from npgpt2_onnx.write.verify import quality as quality

_HOMES = {
    "OnnxModel": "run.model",
    "OnnxWithHead": "run.model",
    "Session": "run.session",
    "export": "write.save",
    "quality": "write.verify",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'npgpt2_onnx' has no attribute {name!r}")
    return getattr(import_module(f"npgpt2_onnx.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
