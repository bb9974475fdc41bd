"""A check as a page: what `report` says, and a map of the errors over layers and tensors."""

import html
import math
from collections.abc import Iterator

from npgpt2.golden.check import Report
from npgpt2.golden.compare import Verdict
from npgpt2.golden.report import in_words, of_one
from npgpt2.taps import BLOCK

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff }
pre { white-space: pre-wrap; background: #f4f4f4; padding: 1rem; border-radius: 4px }
table { border-collapse: collapse; margin: 1rem 0 }
th { font-weight: normal; text-align: right; padding: 0 .5rem; color: #444; font-size: 12px }
thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .4rem 0 }
td { width: 2.2rem; height: 1.6rem; border: 1px solid #fff; text-align: center; font-size: 11px }
.none { background: #eee } .first { outline: 3px solid #000 }
"""


def page(report: Report) -> str:
    """One HTML file, with nothing beside it."""
    words = html.escape("\n".join(in_words(report)))
    title = "it agrees" if report.agrees else "it differs"
    return (
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>golden check: {title}</title><style>{STYLE}</style>\n"
        f"<h1>A port against its references: {title}</h1>\n<pre>{words}</pre>\n"
        "<p>A cell is the worst error of a tensor, in units of its noise: what float32 itself "
        "costs there. Green is within the bound, red beyond, grey was not in the dump. "
        "A black border marks the first that differs; ! has no such number.</p>\n"
        + "".join(_maps(report))
        + "</html>\n"
    )


def _maps(report: Report) -> Iterator[str]:
    """A case at a time: blocks as a grid, the rest as a column."""
    first = report.first.reference.name if report.first else ""
    layers = range(report.golden.manifest["model"]["config"]["n_layer"])
    grid = [[f"h.{i}.{tap.name}" for tap in BLOCK] for i in layers]
    blocks = {name for row in grid for name in row}
    for case in report.golden.manifest["cases"]:
        mine = {v.reference.tensor: v for v in report.verdicts if v.reference.case == case}
        if not mine:
            continue
        yield f"<h2>{html.escape(case)}</h2>\n"
        if mine.keys() & blocks:
            head = "".join(f"<th>{tap.name}</th>" for tap in BLOCK)
            rows = "".join(_row(f"h.{i}", grid[i], mine, first) for i in layers)
            yield f"<table><thead><tr><th></th>{head}</tr></thead>{rows}</table>\n"
        rest = [name for name in mine if name not in blocks]
        yield f"<table>{''.join(_row(name, [name], mine, first) for name in rest)}</table>\n"


def _row(label: str, names: list[str], verdicts: dict[str, Verdict], first: str) -> str:
    cells = "".join(_cell(verdicts.get(name), first) for name in names)
    return f"<tr><th>{html.escape(label)}</th>{cells}</tr>"


def _cell(v: Verdict | None, first: str) -> str:
    if v is None:
        return "<td class='none'></td>"
    marked = " class='first'" if v.reference.name == first else ""
    measured = v.kept is not None and v.reference.dtype.kind == "f"
    text = "" if v.agrees else _short(v.units) if measured else "!"
    return (
        f"<td{marked} style='background:{_colour(v)}' title='{html.escape(of_one(v), True)}'>"
        f"{text}</td>"
    )


def _short(units: float) -> str:
    if not math.isfinite(units):
        return str(units)
    return f"{units:.0f}" if units < 1000 else f"1e{math.log10(units):.0f}"


def _colour(v: Verdict) -> str:
    """Green, the paler the further inside; red, the darker the further outside."""
    if v.agrees:
        share = min(1.0, v.units / v.allowed) if v.allowed else 0.0
        return f"hsl(130 45% {88 - 25 * share:.0f}%)"
    beyond = math.log10(max(1.0, v.units)) if math.isfinite(v.units) else 8.0
    return f"hsl(5 75% {max(45.0, 85 - 5 * beyond):.0f}%)"
