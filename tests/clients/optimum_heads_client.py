"""optimum's classes for other heads: `optimum_heads_client.py FOLDER`, which `heads.py` wrote."""

import json
import sys
from pathlib import Path

import optimum.onnxruntime
import torch

for file in sorted(Path(sys.argv[1]).glob("*.json")):
    given = json.loads(file.read_text())
    expected = {name: torch.tensor(values) for name, values in given.pop("expected").items()}
    kind = getattr(optimum.onnxruntime, f"ORTModelFor{file.stem}")
    inputs = {name: torch.tensor(values) for name, values in given.items()}
    out = kind.from_pretrained(file.with_suffix(""))(**inputs)
    real = inputs["attention_mask"] == 1
    for name, wanted in expected.items():
        rows = real if wanted.shape[:2] == real.shape else slice(None)
        far = (out[name] - wanted)[rows].abs().max() / wanted.abs().max()
        if not far < 1e-5 or out[name].shape != wanted.shape:
            sys.exit(f"optimum, {file.stem}: {name} is {far:.1e} from NumPy's")
    print(f"{f'optimum, {file.stem}':<40}{', '.join(expected)} ok", flush=True)
