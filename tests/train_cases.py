"""Ten steps of AdamW on a small model, by formula. `data/make_train_expected.py` runs them in
PyTorch and stores the losses; `test_train_ops.py` compares npgpt2 with them.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cases import SMALL, formula_tensors, ids

from npgpt2 import GPT2Config
from npgpt2.model.params import build_tree
from npgpt2.train.corpus import Batch
from npgpt2.train.loss import Gradients
from npgpt2.train.optimizer import AdamW, Flat, learning_rate

STEPS, PEAK, WARMUP, ROWS, LENGTH = 10, 1e-2, 3, 4, 8
ADAMW = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
CONFIG = GPT2Config(**SMALL, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
# name → batches a step, longest gradient, names of what is frozen
RUNS = {
    "plain": (1, None, ()),
    "accumulate": (2, None, ()),
    "clip": (1, 0.5, ()),
    "frozen": (1, None, ("wte.weight", "wpe.weight")),
    "all of it": (3, 0.25, ("wte.weight", "wpe.weight")),
}


def batches(step, accumulate):
    """The batch of one step."""
    windows = (ids(2000 + 10 * step + i, (ROWS, LENGTH + 1)) for i in range(accumulate))
    return [Batch(window[:, :-1], window[:, 1:]) for window in windows]


def rate(step):
    return learning_rate(step, PEAK, WARMUP, STEPS, "cosine")


def ten_steps(name, dtype="float32", shares=1):
    """Losses and gradient norms of npgpt2."""
    accumulate, clip, frozen = RUNS[name]
    tensors = {k: v.astype(dtype) for k, v in formula_tensors(CONFIG).items()}
    params = Flat.of(build_tree(tensors), frozen.__contains__)
    optimizer = AdamW(params, params.zeros(), params.zeros(), clip=clip, **ADAMW)
    count, losses, norms = accumulate * ROWS * LENGTH, [], []
    with ThreadPoolExecutor(shares) as pool:
        gradients = Gradients(params, CONFIG, shares, pool)
        for step in range(STEPS):
            nats = sum(gradients.add(batch, count) for batch in batches(step, accumulate))
            total = gradients.total()
            losses.append(nats / count)
            norms.append(optimizer.norm(total))
            optimizer.step(total, rate(step), norms[-1])
            total.array[...] = 0.0
    return np.array(losses), np.array(norms)
