"""Write `onnxruntime.json`: the lowest ONNX Runtime that is correct for each kind of graph.

    python tests/data/make_onnxruntime_table.py FOLDER        # a quarter of an hour on two cores

Each release of VERSIONS is installed into its own folder under FOLDER and opens every graph there.
Its results are compared with NumPy as in `npgpt2 verify`. The graphs are written by the newest onnx
and onnxruntime. Python needs wheels of all releases (3.11).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from families import FAMILIES, OPSETS, write, wrong  # noqa: E402

from npgpt2.base.errors import NpGPT2Error  # noqa: E402

# From the first that runs with NumPy 2, which this package needs: the first and last of each.
VERSIONS = (
    "1.19.0", "1.19.2", "1.20.0", "1.20.1", "1.21.0", "1.21.1", "1.22.0", "1.22.1", "1.23.0",
    "1.23.2", "1.24.1", "1.24.4", "1.25.0", "1.25.1", "1.26.0", "1.27.0", "1.28.0", "1.29.0",
    "1.30.0", "1.31.0", "1.31.1", "1.32.0",
)  # fmt: skip
MEASURE = "--measure"
ABOUT = (
    "The least ONNX Runtime (CPU) that opens each exported graph and computes what NumPy does, by "
    "family (tests/families.py) and opset of ai.onnx; 'found' says what was wrong before. Every "
    "release after it that was measured is right as well."
)


def main(folder: Path) -> None:
    graphs = folder / "graphs"
    for family in FAMILIES:
        for opset in OPSETS:
            write(FAMILIES[family], opset, graphs / family / str(opset))
    found = {version: _measured(folder, version, graphs) for version in VERSIONS}
    table = {
        "about": ABOUT,
        "versions": VERSIONS,
        "least": {f: {str(o): _least(found, f"{f}/{o}") for o in OPSETS} for f in FAMILIES},
        "found": {version: _summary(verdicts) for version, verdicts in found.items()},
    }
    (HERE / "onnxruntime.json").write_text(_written(table), encoding="utf-8", newline="\n")


def _written(table: dict[str, Any]) -> str:
    """JSON with a family, or a release, per line."""
    parts = []
    for key, value in table.items():
        text = json.dumps(value)
        if isinstance(value, dict):
            rows = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in value.items()]
            text = "{\n" + ",\n".join(rows) + "\n }"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _least(found: dict[str, dict[str, str]], graph: str) -> str | None:
    """The first minor release of which, and of all after it, every one that was measured is right;
    None: there is none."""
    least = None
    for version in reversed(VERSIONS):
        if found[version][graph]:
            break
        least = version
    if least is None:
        return None
    minor = least.rpartition(".")[0]
    first = next(v for v in VERSIONS if v.startswith(f"{minor}."))
    return minor if least == first else least


def _summary(verdicts: dict[str, str]) -> dict[str, list[str]]:
    """The graphs, grouped by what was wrong with them."""
    wrong: dict[str, list[str]] = {}
    for graph, verdict in verdicts.items():
        if verdict:
            wrong.setdefault(verdict, []).append(graph)
    return {verdict: _short(graphs) for verdict, graphs in wrong.items()}


def _short(graphs: list[str]) -> list[str]:
    """FAMILY/OPSET, those of an opset that all families share as */OPSET."""
    short = []
    for opset in OPSETS:
        here = [graph for graph in graphs if graph.endswith(f"/{opset}")]
        short += [f"*/{opset}"] if len(here) == len(FAMILIES) else here
    return short


# ── one release, in a process of its own ─────────────────────────────────────────────────────────


def _measured(folder: Path, version: str, graphs: Path) -> dict[str, str]:
    """What is wrong with each graph, '' for nothing, by FAMILY/OPSET. A crash is a verdict, too."""
    place, log = folder / version, folder / f"{version}.jsonl"
    if not place.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
        subprocess.run([*pip, f"onnxruntime=={version}"], check=True)
    total = len(FAMILIES) * len(OPSETS)
    while len(verdicts := _read(log)) < total:
        command = [sys.executable, __file__, MEASURE, str(graphs), str(log)]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(place)}, check=False)
    print(version, sum(not verdict for verdict in verdicts.values()), "of", total, flush=True)
    return verdicts


def _read(log: Path) -> dict[str, str]:
    lines = log.read_text().splitlines() if log.exists() else []
    return dict(map(json.loads, lines))


def measure(graphs: Path, log: Path) -> None:
    """Append a verdict of each graph that has none yet; the process may end at any of them."""
    done = _read(log)
    with log.open("a") as file:
        for family in FAMILIES:
            for opset in OPSETS:
                name = f"{family}/{opset}"
                if name in done:
                    continue
                _note(file, name, "crashes")  # unless what follows takes its place
                _note(file, name, _verdict(family, graphs / name))


def _note(file: TextIO, name: str, verdict: str) -> None:
    file.write(json.dumps([name, verdict]) + "\n")
    file.flush()


def _verdict(family: str, folder: Path) -> str:
    """What is wrong with the graphs of a family; '' if nothing is."""
    try:
        return wrong(FAMILIES[family], folder)
    except NpGPT2Error as error:
        text = str(error)
    for known, short in KNOWN.items():
        if known in text:
            at = text.index(known)
            return short or text[at : at + 90].partition(" node with name")[0]
    return text[-200:]


KNOWN = {  # in what ONNX Runtime says → what is kept of it
    "Unsupported model IR version": "",
    "is under development": "the opset is under development",
    "Could not find an implementation": "",
    "relative_position_bias": "MultiHeadAttention wants a mask for each head",
    "Only 4b quantization": "MatMulNBits takes 4 bits only",
}


if __name__ == "__main__":
    if sys.argv[1] == MEASURE:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
