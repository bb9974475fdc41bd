"""Plain onnxruntime: `plain_client.py FOLDER EXPECTED.json`, a loop that an outsider might write.

It knows only the names and the meaning of the inputs, and reads the cache's shape from the graph.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from checks import hold


def padded(rows, left):
    """Rows of ids → ids and mask (B, T), with padding on one side."""
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def write(session, prompts, new, left):
    """The ids that follow each prompt in greedy decoding."""
    ids, mask = padded(prompts, left)
    cache = {
        past.name: np.zeros((len(ids), past.shape[1], 0, past.shape[3]), np.float32)
        for past in session.get_inputs()
        if past.name.startswith("past_key_values.")
    }
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
    written = []
    for _ in range(new):
        positions = (mask.cumsum(1) - 1).clip(0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
        logits, *present = session.run(outputs, feeds)
        cache = dict(zip(cache, present, strict=True))
        ids = logits[:, -1:].argmax(-1)
        mask = np.concatenate([mask, np.ones_like(ids)], 1)
        written.append(ids)
    return np.concatenate(written, 1).tolist()


folder, expected = sys.argv[1:]
for graph in json.loads(Path(expected).read_text(encoding="utf-8")):
    session = ort.InferenceSession(f"{folder}/onnx/{graph}", providers=["CPUExecutionProvider"])
    left = "gqa" not in graph  # GroupQueryAttention wants the padding on the right

    def run(case, session=session, left=left):
        return case["prompt_ids"], write(session, case["prompt_ids"], case["new"], left)

    hold("onnxruntime", graph, expected, run)
