"""The expected output of each graph of an export: `expected.py CHECKPOINT FOLDER > EXPECTED.json`.

For float32 it comes from the NumPy model. Quantized graphs also round activations, and the texts of
two such graphs differ sooner or later. For them this project's runner computes it, for each graph.

A row ends before the first choice between two ids that are closer than rounding errors: which one
a client picks says nothing about the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np

from npgpt2 import GPT2
from npgpt2_onnx import OnnxModel
from npgpt2_onnx.run.session import Session, graphs_in

# Logits. float32 kernels were seen to differ by 1e-5, those of whole numbers by 0.02 as a rule.
CLEAR = {"fp32": 1e-3, "int8": 0.05}
LEAST = 4  # ids a row has to have

END = "<|endoftext|>"
LONG = "To be, or not to be: that is the"
CASES = {
    "one": ["O Romeo, "],
    "batch": ["KING", "O Romeo, ", LONG],
    "eos": [f"The end.{END}"],
    "eos batch": [f"Farewell.{END}", LONG, END],
    "context": ["O Romeo, "],  # to its end
}


def cases(model, clear):
    """CASES, each with the ids of its prompts and of this model's greedy continuation."""
    for name, prompts in CASES.items():
        longest = max(len(model.encode(prompt)) for prompt in prompts)
        new = model.config.n_positions - longest if name == "context" else 24
        done = model.generate(prompts, max_new_tokens=new, temperature=0)
        written = [clearly(model, c.prompt_ids, c.ids, clear) for c in done]
        if min(map(len, written)) < LEAST:
            sys.exit(f"{name!r}: a row has under {LEAST} clear choices. Take another prompt")
        yield {
            "case": name,
            "prompts": prompts,
            "prompt_ids": [c.prompt_ids for c in done],
            "new": new,
            "written": written,
            "texts": [model.tokenizer.decode(ids) for ids in written],
        }


def clearly(model, prompt, ids, clear):
    """The ids before the first one with a margin below `clear`."""
    logits = model.logits(np.array([prompt + ids]))[0, len(prompt) - 1 : -1]
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    close = np.flatnonzero(first - second < clear)
    return ids[: close[0]] if len(close) else ids


if __name__ == "__main__":
    checkpoint, folder = sys.argv[1:]
    numpy = GPT2.from_pretrained(checkpoint)
    found = {}
    for (precision, _), path in graphs_in(Path(folder)).items():
        model = numpy if precision == "fp32" else OnnxModel(Session(path), Path(folder))
        found[path.name] = list(cases(model, CLEAR[precision]))
    json.dump(found, sys.stdout, indent=1)
