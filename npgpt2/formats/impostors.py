"""What people really have under the name of a weights file, by its first bytes."""

from pathlib import Path

from npgpt2.errors import CheckpointError

ZIP = b"PK\x03\x04"
PAGE = "is a web page, expected the weights: the download failed. Download again"
IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, expected the weights. Run 'git lfs pull'",
    b"<!doctype html": PAGE,
    b"<html": PAGE,
    b"\x1f\x8b": "is compressed (gzip), expected {}. Unpack it first",
}


def refuse_impostor(path: Path, start: bytes, expected: str) -> None:
    """Raises CheckpointError where a file begins as something else that is known."""
    for magic, text in IMPOSTORS.items():
        if start.lstrip().lower().startswith(magic):
            raise CheckpointError(f"{path}: {text.format(expected)}")
