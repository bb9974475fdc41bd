"""Write `expected.json`: what PyTorch computes for `tests/cases.py`, and for `tiny`.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/data/make_expected.py

Of every output some float64 numbers are kept, and the distance of PyTorch's own float32 from them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cases import CASES, HEAD_CASES, config_of, formula_tensors, real  # noqa: E402
from torch_reference import run, run_head  # noqa: E402
from transformers import GPT2LMHeadModel  # noqa: E402

PROMPT = "O Romeo, "
KEPT = 5  # numbers of each output


def main() -> None:
    cases = {}
    for name, (_, inputs) in CASES.items():
        config = config_of(name)
        tensors = formula_tensors(config)
        wide = real(run(config, tensors, inputs, torch.float64), inputs)
        narrow = real(run(config, tensors, inputs, torch.float32), inputs)
        cases[name] = {}
        for key, value in wide.items():
            at = np.linspace(0, value.size - 1, KEPT).astype(int) if value.ndim else [0]
            cases[name][key] = {
                "shape": value.shape,
                "norm": float(np.linalg.norm(value)),
                "at": [int(i) for i in at],
                "values": [float(value.reshape(-1)[i]) for i in at],
                "float32_error": float(np.linalg.norm(narrow[key] - value)),
            }
    (HERE / "expected.json").write_text(
        json.dumps({"made_with": f"torch {torch.__version__}", "cases": cases, "tiny": tiny(),
                    "heads": heads()}, indent=1) + "\n"
    )  # fmt: skip


def heads() -> dict[str, object]:
    """All values of each output of `HEAD_CASES`; of logits over the vocabulary, only a few."""
    found = {}
    for name, (_, inputs) in HEAD_CASES.items():
        config = config_of(name)
        out = run_head(config, formula_tensors(config), inputs, torch.float64)
        found[name] = {key: (x[..., :2] if x.ndim == 4 else x).tolist() for key, x in out.items()}
    return found


def tiny() -> dict[str, object]:
    """What the trained checkpoint generates, and its score of a sentence."""
    model = GPT2LMHeadModel.from_pretrained(HERE / "tiny", dtype=torch.float64).eval()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(HERE / "tiny")
    prompt = tokenizer(PROMPT, return_tensors="pt")
    texts = {}
    for name, options in {
        "greedy": {},
        "greedy, repetition penalty 1.3": {"repetition_penalty": 1.3},
        "3 beams": {"num_beams": 3},
        "4 beams, repetition penalty 1.2": {"num_beams": 4, "repetition_penalty": 1.2},
    }.items():
        out = model.generate(
            **prompt, max_new_tokens=40, do_sample=False, pad_token_id=0, **options
        )
        texts[name] = out[0, prompt.input_ids.shape[1] :].tolist()
    with torch.no_grad():
        logits = model(**prompt).logits[0, -1]
    return {
        "prompt": PROMPT,
        "prompt_ids": prompt.input_ids[0].tolist(),
        "last_logits": logits[:8].tolist(),
        "texts": texts,
    }


if __name__ == "__main__":
    main()
