"""The result of a check as an HTML page: the report, and a map of errors by layer and tensor."""

import html
import math
from collections.abc import Iterator

from npgpt2.base.document import Page, document
from npgpt2.golden.check import Report
from npgpt2.golden.compare import Verdict
from npgpt2.golden.report import in_words, of_one
from npgpt2.model.taps import BLOCK

GREENS, REDS = 5, 9  # shades: error as a share of the bound; powers of ten of the error

STYLE = """
table { border-collapse: collapse; margin: 1rem 0 }
th { font-weight: normal; text-align: right; padding: 0 .5rem; color: var(--faint);
  font-size: 12px }
thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .4rem 0 }
td { width: 2.2rem; height: 1.6rem; border: 1px solid var(--paper); text-align: center;
  font-size: 11px }
.map { overflow-x: auto; padding: 3px }
.none { background: var(--raised) } .first { outline: 3px solid var(--ink) }
"""


def page(report: Report) -> Page:
    """One self-contained HTML file."""
    words = html.escape("\n".join(in_words(report)))
    title = "the port agrees" if report.agrees else "the port differs"
    return document(
        f"golden check: {title}",
        f"<h1>Golden check: {title}</h1>\n<pre>{words}</pre>\n"
        "<p>Each cell shows the worst error of a tensor in units of its noise, the error that "
        "float32 itself makes there. Green: within the bound. Red: outside. Grey: not in the dump. "
        "A thick border marks the first difference; ! marks one without a measured error.</p>\n"
        + "".join(_maps(report)),
        STYLE + _shades(),
    )


def _shades() -> str:
    """Green: the paler, the smaller the error. Red: the stronger, the larger the error.

    Text has a contrast of at least 4.5 : 1 on each.
    """
    greens = [(f"g{n}", 130, 45, 88 - 25 * n / (GREENS - 1), 14 + 12 * n / (GREENS - 1))
              for n in range(GREENS)]  # fmt: skip
    reds = [(f"r{n}", 5, 75, 88 - 27 * n / (REDS - 1), 20 + 18 * n / (REDS - 1))
            for n in range(REDS)]  # fmt: skip
    return "".join(
        f".{name} {{ background: light-dark(hsl({hue} {full}% {light:.0f}%), "
        f"hsl({hue} {full}% {dark:.0f}%)) }}\n"
        for name, hue, full, light, dark in greens + reds
    )


def _maps(report: Report) -> Iterator[str]:
    """For each case: the blocks' tensors as a grid, the others as a column."""
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
            yield _table(f"<thead><tr><th></th>{head}</tr></thead>{rows}")
        rest = [name for name in mine if name not in blocks]
        yield _table("".join(_row(name, [name], mine, first) for name in rest))


def _table(rows: str) -> str:
    """A table in a box that scrolls sideways on a narrow screen."""
    return f'<div class="map"><table>{rows}</table></div>\n'


def _row(label: str, names: list[str], verdicts: dict[str, Verdict], first: str) -> str:
    cells = "".join(_cell(verdicts.get(name), first) for name in names)
    return f"<tr><th>{html.escape(label)}</th>{cells}</tr>"


def _cell(v: Verdict | None, first: str) -> str:
    if v is None:
        return '<td class="none"></td>'
    marked = " first" if v.reference.name == first else ""
    measured = v.kept is not None and v.reference.dtype.kind == "f"
    text = "" if v.agrees else _short(v.units) if measured else "!"
    return f'<td class="{_shade(v)}{marked}" title="{html.escape(of_one(v))}">{text}</td>'


def _short(units: float) -> str:
    if not math.isfinite(units):
        return str(units)
    return f"{units:.0f}" if units < 1000 else f"1e{math.log10(units):.0f}"


def _shade(v: Verdict) -> str:
    """The CSS class of a cell's colour."""
    if v.agrees:
        share = min(1.0, v.units / v.allowed) if v.allowed else 0.0
        return f"g{round(share * (GREENS - 1))}"
    beyond = math.log10(max(1.0, v.units)) if math.isfinite(v.units) else math.inf
    return f"r{round(min(beyond, REDS - 1))}"
