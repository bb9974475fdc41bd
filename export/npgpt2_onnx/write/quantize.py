"""Quantize weights to integers of 8 or 4 bits in blocks, the format of MatMulNBits.

A block is a run of values along the axis that is summed over. It has one scale, and a value is
scale · (code − 2^(bits − 1)). Blocks are independent of each other.
"""

import numpy as np

from npgpt2.base.arrays import Array


def quantize(x: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Rows (R, K) → codes (R, blocks, block · bits / 8) uint8 and scales (R, blocks) float32.

    The value farthest from zero in each block gets the lowest code and is exact. The scale has a
    sign, because that side of zero has one code more than the other.

    >>> codes, scales = quantize(np.array([[-8.0, 4.0] + [0.0] * 14], "f4"), bits=4, block=16)
    >>> codes[0, 0, :2], scales
    (array([192, 136], dtype=uint8), array([[1.]], dtype=float32))
    """
    rows, width = x.shape
    blocks = -(-width // block)
    if width % block:
        x = np.pad(x, ((0, 0), (0, blocks * block - width)))
    x = x.reshape(rows, blocks, block)
    half = 1 << (bits - 1)
    farthest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
    scales = farthest / -half
    codes = np.divide(x, scales, out=np.zeros_like(x), where=scales != 0)
    codes = np.rint(codes, out=codes) + half
    codes = np.clip(codes, 0, 2 * half - 1, out=codes).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return codes, scales[..., 0].astype(np.float32)


def dequantize(codes: Array, scales: Array, bits: int, width: int) -> Array:
    """Return the values of the codes, (R, K) float32."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    values = codes.astype(np.float32) - (1 << (bits - 1))
    values *= scales[..., None]
    return values.reshape(len(codes), -1)[:, :width]
