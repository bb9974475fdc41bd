"""CRC-32C, the checksum of TensorFlow's checkpoints."""

from pathlib import Path

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, MissingPackage


def require_sum(path: Path, what: str, data: bytes | Array, masked: int) -> None:
    """Raises CheckpointError if the bytes do not match TensorFlow's masked checksum."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    if crc32c(data) != ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF:
        raise CheckpointError(f"{path}: {what}: the checksum does not match. Download again")


def crc32c(data: bytes | Array) -> int:
    """The CRC-32C (Castagnoli) of bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    try:
        import google_crc32c
    except ImportError:
        raise MissingPackage(
            "TensorFlow's checksums need google-crc32c. Run: pip install 'npgpt2[convert]'"
        ) from None
    value: int = google_crc32c.value(bytes(data))
    return value
