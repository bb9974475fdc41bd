"""Detect files that are not what their names say, by their first bytes."""

from npgpt2.base.errors import CheckpointError

ZIP = b"PK\x03\x04"
PAGE = "is a web page, expected {}: the download failed. Download again"
IMPOSTORS = {
    b"version https://git-lfs": "is a Git LFS pointer, expected {}. Run 'git lfs pull'",
    b"<!doctype html": PAGE,
    b"<html": PAGE,
    b"\x1f\x8b": "is compressed (gzip), expected {}. Unpack it first",
}


def refuse_impostor(
    source: object, start: bytes, expected: str, error: type[Exception] = CheckpointError
) -> None:
    """Raises `error` if the first bytes of a file belong to one of `IMPOSTORS`."""
    start = start[:64].lstrip().lower()
    for magic, text in IMPOSTORS.items():
        if start.startswith(magic):
            raise error(f"{source}: {text.format(expected)}")
