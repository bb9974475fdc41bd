"""What people really have under the name of a file, by its first bytes."""

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
    """Raises `error` where a file begins as something else that is known."""
    start = start[:64].lstrip().lower()
    for magic, text in IMPOSTORS.items():
        if start.startswith(magic):
            raise error(f"{source}: {text.format(expected)}")
