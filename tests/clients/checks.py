"""What the Python clients share: run a graph's cases, compare with EXPECTED.json, print a line."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Sequence[int]]


def hold(
    client: str,
    graph: str,
    expected: str,
    write: Callable[[dict[str, Any]], tuple[Rows, Rows]],
    decode: Callable[[Sequence[int]], str] | None = None,
) -> None:
    """Run a graph's cases and print how many ids were right in each.

    The first difference ends the process with one line.

    Args:
        graph: the .onnx file's name.
        expected: the file that `expected.py` wrote.
        write: a case → the ids of each prompt, and the ids generated after it.
        decode: ids → text; None for a client without text.
    """
    cells = []
    for case in json.loads(Path(expected).read_text(encoding="utf-8"))[graph]:
        prompts, written = write(case)
        for row, wanted in enumerate(case["written"]):
            at = f"{client}, {graph}, {case['case']!r}, row {row}"
            _same(f"{at}: the prompt's ids", list(prompts[row]), case["prompt_ids"][row])
            got = list(written[row])[: len(wanted)]
            _same(f"{at}: ids", got, wanted)
            if decode is not None:
                _same(f"{at}: text", decode(got), case["texts"][row])
        cells.append(f"{sum(map(len, case['written'])):>9} ok")
    print(f"{client:<24}{graph:<25}{''.join(cells)}", flush=True)


def _same(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        pairs = zip(got, wanted, strict=False)
        first = next((i for i, (g, w) in enumerate(pairs) if g != w), min(len(got), len(wanted)))
        sys.exit(f"{what} differ at {first}: got {got!r}, expected {wanted!r}")
