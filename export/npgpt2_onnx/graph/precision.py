"""The precisions of an export, with the file suffixes that transformers.js expects."""

from typing import NamedTuple

from npgpt2.model.config import HEADS
from npgpt2_onnx.graph.builder import FLOAT, FLOAT16


class Precision(NamedTuple):
    """How weights are stored and multiplied.

    fp16 keeps LayerNorm, softmax and the residual stream in float32, where GPT-2's outliers would
    overflow in float16. int8 and int4 are integers in blocks along the axis that is summed over,
    each block with a scale. wte has 8 bits in both, since logits lose precision first.
    """

    name: str
    suffix: str
    dtype: str  # its name in transformers.js
    float: int = FLOAT  # dtype of matrix products, keys and values
    bits: int = 0  # of a quantized weight; 0: no weight is quantized

    def bits_of(self, parameter: str) -> int:
        """Return the bits per value of a parameter; 0: it is stored as a float."""
        matrix = parameter.endswith("weight") and not is_exact(parameter)
        if not self.bits or not matrix or parameter == "wpe.weight":
            return 0
        return 8 if parameter in ("wte.weight", "lm_head.weight") else self.bits


def is_exact(parameter: str) -> bool:
    """Return whether a parameter stays float32 in every precision: small ones that matter much."""
    return "ln_" in parameter or parameter.split(".")[0] in HEADS.values()


def block_size(width: int) -> int:
    """Return the number of values per scale on an axis of this length: 16, 32, 64 or 128.

    On the 124M shape, blocks of 128 decode 20 to 30 % faster than blocks of 32. They cost little:
    on a trained model of 3.1 M parameters, a KL divergence of 1.6e-4 nats instead of 1.1e-4 (int8).

    >>> block_size(768), block_size(1600), block_size(12)
    (128, 64, 16)
    """
    return next((size for size in (128, 64, 32) if width % size == 0), 16)


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", "", "fp32"),
        Precision("fp16", "_fp16", "fp16", FLOAT16),
        Precision("int8", "_quantized", "q8", bits=8),
        Precision("int4", "_q4", "q4", bits=4),
    )
}
