"""Export models with other heads and store NumPy's results for two rows: `heads.py FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np

from npgpt2 import GPT2Config, GPT2WithHead
from npgpt2.checkpoints.checkpoint import save
from npgpt2_onnx import export

KINDS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 3, 3, 3]]
MASK = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]

top = Path(sys.argv[1])
for kind in KINDS:
    config = GPT2Config(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4, pad_token_id=3,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3, architectures=(f"GPT2For{kind}",),
        id2label={0: "no", 1: "yes", 2: "maybe"} if kind != "QuestionAnswering" else {},
    )  # fmt: skip
    model = GPT2WithHead.from_random(config)
    (top / f"{kind}-checkpoint").mkdir(parents=True)
    save(top / f"{kind}-checkpoint", config, model.params)
    export(top / f"{kind}-checkpoint", top / kind)
    found = {name: x.tolist() for name, x in model(IDS, attention_mask=np.array(MASK)).items()}
    expected = {"input_ids": IDS, "attention_mask": MASK, "expected": found}
    (top / f"{kind}.json").write_text(json.dumps(expected))
