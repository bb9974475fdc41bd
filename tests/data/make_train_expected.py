"""Write `train_expected.json`: ten losses of each run in `tests/train_cases.py`, by PyTorch.

pip install torch==2.13.0 transformers==5.23.0
python tests/data/make_train_expected.py
"""

import json
import math
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cases import formula_tensors  # noqa: E402
from torch_reference import build  # noqa: E402
from train_cases import ADAMW, CONFIG, RUNS, STEPS, batches, rate  # noqa: E402


def ten_steps(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of PyTorch."""
    accumulate, clip, frozen = RUNS[name]
    model = build(CONFIG, formula_tensors(CONFIG), dtype)
    for path in frozen:
        model.get_parameter(f"transformer.{path}").requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2]},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
    )
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = []
        for batch in batches(step, accumulate):
            logits = model(torch.tensor(batch.ids), use_cache=False).logits
            targets = torch.tensor(batch.targets)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            (loss / accumulate).backward()
            parts.append(loss.item())
        losses.append(sum(parts) / accumulate)
        norms.append(torch.nn.utils.clip_grad_norm_(trained, clip or math.inf).item())
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    return losses, norms


def main() -> None:
    runs = {}
    for name in RUNS:
        runs[name] = {}
        for dtype in (torch.float32, torch.float64):
            losses, norms = ten_steps(name, dtype)
            runs[name][str(dtype).removeprefix("torch.")] = {"losses": losses, "norms": norms}
    text = json.dumps({"made_with": f"torch {torch.__version__}", "runs": runs}, indent=1)
    (HERE / "train_expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
