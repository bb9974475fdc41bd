"""How an object shows itself: in a line for `repr`, and as HTML where a notebook asks.

The HTML is a fragment: no script, no text as markup, and colours that a light page and a dark one
both carry.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from npgpt2.base.arrays import Array

MOST = 256  # pixels of a side of a map


def brief(value: Any) -> str:
    """An array by its shape and dtype, several by their number; anything else as it is.

    >>> import numpy as np
    >>> brief(np.zeros((2, 3), "f4")), brief((np.zeros(1), np.zeros(1))), brief(None)
    ('(2, 3) float32', '2 × (1,) float64', 'None')
    """
    if isinstance(value, tuple) and value and hasattr(value[0], "dtype"):
        return f"{len(value)} × {brief(value[0])}"
    if hasattr(value, "dtype") and hasattr(value, "shape") and value.shape:
        return f"{value.shape} {value.dtype}"
    return str(value)


def show_tree(kinds: Sequence[type], walk: Callable[[Any], Iterator[tuple[str, Array]]]) -> None:
    """Give the nodes of a tree a `repr` of one line, and a table of all arrays below them.

    Args:
        walk: a node → the names and arrays below it.
    """

    def line(node: Any) -> str:
        found = list(walk(node))
        inner = ", ".join(f"{name} {brief(array)}" for name, array in found)
        if len(found) > 2:
            there = [name for name in node._fields if getattr(node, name) is not None]
            size = sum(array.size for _, array in found)
            inner = f"{', '.join(there)}: {len(found)} tensors, {size:,} parameters"
        return f"{type(node).__name__}({inner})"

    for kind in kinds:
        kind.__repr__ = line  # type: ignore[method-assign, assignment]
        kind._repr_html_ = lambda node: parameters(line(node), walk(node))  # type: ignore[attr-defined]


def parameters(title: str, arrays: Iterable[tuple[str, Array]]) -> str:
    """Arrays by name, as a table under a title."""
    rows = [(name, brief(a), f"{a.size:,}", f"{a.std():.4f}") for name, a in arrays]
    return table(title, ("tensor", "shape and dtype", "values", "standard deviation"), rows)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table under a title; it scrolls where it is long."""
    import html  # here and below: only what is drawn needs it, every model imports this file

    cells = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return (
        f"<div><p><code>{html.escape(title)}</code></p>"
        '<div style="max-height: 24em; overflow: auto; width: fit-content; max-width: 100%">'
        f"<table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table></div></div>"
    )


def text(title: str, body: str) -> str:
    """A text, letter for letter, under a title."""
    import html

    return (
        f"<div><p><code>{html.escape(title)}</code></p>"
        f'<pre style="white-space: pre-wrap">{html.escape(body)}</pre></div>'
    )


def maps(title: str, names: Sequence[str], arrays: Sequence[Array]) -> str:
    """Small maps of probabilities, a row of them for each name: (H, T, S) arrays, 0 to 1."""
    import html

    lines = []
    for name, heads in zip(names, arrays, strict=True):
        pictures = "".join(
            f'<img src="{_png(head)}" title="{html.escape(name)}, head {i}" style="width: 5em; '
            'height: 5em; margin: 1px; image-rendering: pixelated; border: 1px solid #8888">'
            for i, head in enumerate(heads)
        )
        lines.append(f"<div>{html.escape(name)}<br>{pictures}</div>")
    return f"<div><p><code>{html.escape(title)}</code></p>{''.join(lines)}</div>"


def _png(shares: Array) -> str:
    """A matrix of numbers from 0 (white) to 1 (dark blue) as a picture's address.

    PNG: https://www.w3.org/TR/png-3/, an 8-bit image with a palette.
    """
    import base64
    import struct
    import zlib

    step = -(-max(shares.shape) // MOST)
    cells = (np.nan_to_num(shares[::step, ::step]).clip(0, 1) * 255).round().astype("u1")
    low, high = (247, 251, 255), (8, 48, 107)
    palette = bytes(round(a + (b - a) * n / 255) for n in range(256)
                    for a, b in zip(low, high, strict=True))  # fmt: skip
    lines = b"".join(b"\0" + row.tobytes() for row in cells)
    header = struct.pack(">IIBBBBB", cells.shape[1], cells.shape[0], 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
