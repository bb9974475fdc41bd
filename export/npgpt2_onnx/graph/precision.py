"""The precisions of an export, each with its file's suffix as transformers.js looks for it."""

from typing import NamedTuple

from npgpt2.model.config import HEADS
from npgpt2_onnx.graph.builder import FLOAT, FLOAT16


class Precision(NamedTuple):
    """How weights are stored and multiplied.

    fp16 keeps LayerNorm, softmax and the residual stream in float32: GPT-2's outliers would
    overflow there. int8 and int4 are whole numbers, in blocks along the axis that is summed over,
    each with a scale; wte has 8 bits in both, since logits are what suffers first.
    """

    name: str
    suffix: str
    dtype: str  # as transformers.js says it
    float: int = FLOAT  # what matrices are multiplied in, and what keys and values are kept in
    bits: int = 0  # of a quantized weight; 0: none is

    def bits_of(self, parameter: str) -> int:
        """How many bits each number of a parameter gets; 0: it is stored as a float."""
        matrix = parameter.endswith("weight") and not is_exact(parameter)
        if not self.bits or not matrix or parameter == "wpe.weight":
            return 0
        return 8 if parameter in ("wte.weight", "lm_head.weight") else self.bits


def is_exact(parameter: str) -> bool:
    """Whether a parameter stays float32 in every precision: small, and much depends on it."""
    return "ln_" in parameter or parameter.split(".")[0] in HEADS.values()


def block_size(width: int) -> int:
    """Numbers that share a scale, on an axis of this length: what MatMulNBits takes, at most 128.

    Measured on the 124M shape, blocks of 128 decode 20 to 30 % faster than blocks of 32, and cost
    little: on a trained model of 3.1 M parameters KL 1.6e-4 nats against 1.1e-4 (int8).

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
