"""A report as Markdown."""

from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]


def table(report: Report) -> str:
    """Every section that has something to tell, with what failed and what was left out."""
    sections = report["sections"]
    parts = []
    for name, section in sections.items():
        rows = [row for row in section["rows"] if "failed" not in row]
        text = WRITERS[name](rows) if rows else ""
        notes = [f"{row['step']}: {said(row)}" for row in section["rows"] if "failed" in row]
        if section.get("missing"):
            notes.append(f"not run: {section['missing']}")
        if section["left_out"]:
            notes.append(f"left out: {'; '.join(section['left_out'])}")
        parts.append("\n\n".join(part for part in (f"**{name}**", text, *notes) if part))
    faults = "\n".join(f"- {fault}" for fault in report["faults"])
    return "\n\n".join([*parts, f"**faults**\n\n{faults or 'none'}"])


def said(row: dict[str, Any]) -> str:
    return "out of memory" if row.get("out_of_memory") else row["failed"]


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """
    >>> print(grid(["what", "tokens/s"], [["decode", 1234.5]]))
    | what | tokens/s |
    | --- | --- |
    | decode | 1,234 |
    """
    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in sorted(value.items())) or "none"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
    return "" if value is None else str(value)


# ── by section ───────────────────────────────────────────────────────────────────────────────────


def machine(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        if "packages" in row:
            there = [f"{name} {version}" for name, version in row["packages"].items() if version]
            lines.append(
                ", ".join([row["gpu"] or row["machine"], f"Python {row['python']}", *there])
            )
        if "providers" in row:
            lines.append(f"onnxruntime {row['version']}: {', '.join(row['providers'])}")
        if "how" in row:
            lines += [f"{row[key] / 1e9:,.0f} GB/s {key.replace('_', ' ')} ({row['how']})"
                      for key in ("bandwidth", "to_device") if row.get(key)]  # fmt: skip
    return "; ".join(lines)


def models(rows: Sequence[dict[str, Any]]) -> str:
    return "; ".join(f"{row['step']}: {row['bytes'] / 1e6:,.0f} MB" for row in rows)


def parity(rows: Sequence[dict[str, Any]]) -> str:
    head = ["graph", "logits", "keys and values", "a written text", "same text", "limit", "good"]
    keys = ("step", "logits", "presents", "written", "same_text", "limit", "good")
    return grid(head, [[row[key] for key in keys] for row in rows if "logits" in row])


def kernels(rows: Sequence[dict[str, Any]]) -> str:
    head = ["graph", "nodes", "copies", "small ones elsewhere", "work elsewhere", "good"]
    keys = ("step", "nodes", "copies", "small", "work", "good")
    lines = [[row[key] for key in keys] for row in rows if "nodes" in row]
    known = {row["known"]: "" for row in rows if row.get("known")}
    return "\n\n".join([grid(head, lines), *known])


def speed(rows: Sequence[dict[str, Any]]) -> str:
    head = ["precision", "graph", "rows", "tokens", "prefill", "decode", "of the bandwidth",
            "prefill, graph alone", "decode, graph alone", "of the bandwidth"]  # fmt: skip
    keys = ("precision", "kind", "batch", "context", "prefill", "decode", "decode_of_bandwidth",
            "graph_prefill", "graph_decode", "graph_decode_of_bandwidth")  # fmt: skip
    return grid(head, [[row.get(key) for key in keys] for row in rows if "decode" in row])


def torch(rows: Sequence[dict[str, Any]]) -> str:
    head = ["PyTorch", "dtype", "rows", "tokens", "prefill", "decode", "of the bandwidth"]
    keys = ("way", "dtype", "batch", "context", "prefill", "decode", "decode_of_bandwidth")
    return grid(head, [[row.get(key) for key in keys] for row in rows])


WRITERS = {
    "machine": machine, "models": models, "parity": parity, "kernels": kernels, "speed": speed,
    "torch": torch, "large": speed,
}  # fmt: skip
