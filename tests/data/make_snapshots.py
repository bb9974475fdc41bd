"""Write `snapshots/`: the exported graphs and every command's --help, as texts.

    python tests/data/make_snapshots.py

With the newest onnx and onnxruntime: all opsets of `snapshots.OPSETS` are needed.
"""

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from snapshots import FOLDER, OPSETS, loads_here, snapshots  # noqa: E402


def main() -> None:
    lacking = [str(opset) for opset in OPSETS if not loads_here(opset)]
    if lacking:
        raise SystemExit(f"opset {', '.join(lacking)}: not in the onnx and onnxruntime that are "
                         "installed. pip install -U onnx onnxruntime")  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        texts = snapshots(Path(work))
    for path in FOLDER.rglob("*.txt"):
        if path.relative_to(FOLDER).as_posix() not in texts:
            path.unlink()
    for name, text in texts.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(texts)} texts in {FOLDER}")


if __name__ == "__main__":
    main()
