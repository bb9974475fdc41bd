"""Small models that exercise every switch of GPT-2, with weights and inputs by formula.

`data/make_expected.py` runs them through PyTorch and stores the outputs. `test_expected.py`
compares npgpt2 with these outputs, without PyTorch.
"""

import numpy as np

from npgpt2 import GPT2Config
from npgpt2.model.params import param_shapes

B, T, E = 2, 7, 5
SMALL = {"vocab_size": 23, "n_positions": 16, "n_embd": 12, "n_layer": 3, "n_head": 3}


# What `data/make_tensorflow.py` saved. By name h10 comes before h2.
FROM_TENSORFLOW = GPT2Config(vocab_size=17, n_positions=8, n_embd=4, n_layer=11, n_head=2)


def uniforms(key, shape):
    """Values from −1 to 1. NumPy promises never to change the raw stream of Philox."""
    count = int(np.prod(shape))
    raw = np.random.Philox(key=key).random_raw(count) >> np.uint64(11)
    return (raw * 2.0**-52 - 1).reshape(shape)


def formula_tensors(config):
    """Weights by formula, float64, by name. LayerNorm weights are far from 1, biases far from 0."""
    tensors = {}
    # The wider, the smaller: rounding errors of a chaotic model would say nothing.
    scale = 0.4 * (SMALL["n_embd"] / config.n_embd) ** 0.5
    for key, (name, shape) in enumerate(param_shapes(config).items()):
        w = uniforms(key, shape)
        gain = ".ln_" in name or name.startswith("ln_f")
        tensors[name] = 1 + 0.5 * w if gain and name.endswith("weight") else scale * w
    return tensors


def ids(key, shape=(B, T), below=SMALL["vocab_size"]):
    return ((uniforms(key, shape) + 1) / 2 * below).astype(np.int64)


IDS = ids(1000)
LEFT = np.array([[0, 0, 0, 1, 1, 1, 1], [1] * T])
RIGHT = np.array([[1, 1, 1, 1, 1, 0, 0], [1] * T])
LABELS = np.where(uniforms(1001, (B, T)) < -0.5, -100, IDS)
HEAD_MASK = np.array([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0], [0.25, 1.0, 1.0]])
STATES = uniforms(1002, (B, E, SMALL["n_embd"]))
EMBEDS = uniforms(1003, (B, T, SMALL["n_embd"]))
ENCODER = {"encoder_hidden_states": STATES}

# name → (config, what is passed to the model)
CASES = {
    **{
        f"activation {name}": ({"activation_function": name}, {"input_ids": IDS})
        for name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu", "quick_gelu", "relu",
                     "silu", "swish", "tanh")
    },
    "no scale": ({"scale_attn_weights": False}, {"input_ids": IDS}),
    "inverse layer": ({"scale_attn_by_inverse_layer_idx": True}, {"input_ids": IDS}),
    "n_inner": ({"n_inner": 17}, {"input_ids": IDS}),
    "epsilon": ({"layer_norm_epsilon": 1e-2}, {"input_ids": IDS}),
    "own head": ({"tie_word_embeddings": False}, {"input_ids": IDS}),
    "one layer, one head": ({"n_layer": 1, "n_head": 1}, {"input_ids": IDS}),
    "one token": ({}, {"input_ids": IDS[:1, :1]}),
    "token types": ({}, {"input_ids": IDS, "token_type_ids": ids(1004)}),
    "positions": ({}, {"input_ids": IDS, "position_ids": ids(1005, below=16)}),
    "embeddings": ({}, {"inputs_embeds": EMBEDS}),
    "left padding": ({}, {"input_ids": IDS, "attention_mask": LEFT}),
    "right padding": ({}, {"input_ids": IDS, "attention_mask": RIGHT}),
    "head mask": ({}, {"input_ids": IDS, "head_mask": HEAD_MASK}),
    "labels": ({}, {"input_ids": IDS, "labels": LABELS}),
    "last two": ({}, {"input_ids": IDS, "logits_to_keep": 2}),
    "cross-attention": ({"add_cross_attention": True}, {"input_ids": IDS, **ENCODER}),
    "cross-attention, masked": (
        {"add_cross_attention": True, "scale_attn_by_inverse_layer_idx": True},
        {"input_ids": IDS, **ENCODER,
         "encoder_attention_mask": np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])},
    ),
}  # fmt: skip


# The same for other heads: rows padded by the config's own id, on both sides, or by the mask alone.
PAD = 3
PADDED = np.where(RIGHT == 1, IDS, PAD)
CHOICES = np.stack([IDS, IDS[::-1]])  # (B, N, T)
THREE = {"id2label": {0: "no", 1: "yes", 2: "maybe"}}
CHOSEN = {"mc_token_ids": np.array([[4, 6], [0, 2]])}


def with_head(kind, **switches):
    return {"architectures": (f"GPT2{kind}",), **switches}


HEAD_CASES = {
    "sequences": (
        with_head("ForSequenceClassification", pad_token_id=PAD, **THREE), {"input_ids": PADDED}
    ),
    "sequences, masked": (
        with_head("ForSequenceClassification", pad_token_id=PAD),
        {"input_ids": PADDED, "attention_mask": RIGHT},
    ),
    "sequences, padded left": (
        with_head("ForSequenceClassification", pad_token_id=PAD),
        {"input_ids": np.where(LEFT == 1, IDS, PAD), "attention_mask": LEFT},
    ),
    "all of it padding": (
        with_head("ForSequenceClassification", pad_token_id=PAD), {"input_ids": IDS * 0 + PAD}
    ),
    "a reward": (
        with_head("ForSequenceClassification", id2label={0: "reward"}), {"input_ids": IDS[:1]}
    ),
    "tokens": (with_head("ForTokenClassification", **THREE), {"input_ids": IDS}),
    "tokens, masked": (
        with_head("ForTokenClassification"), {"input_ids": IDS, "attention_mask": RIGHT}
    ),
    "answers": (with_head("ForQuestionAnswering"), {"input_ids": IDS}),
    "choices": (with_head("DoubleHeadsModel"), {"input_ids": CHOICES}),
    "choices, own head": (
        with_head("DoubleHeadsModel", summary_activation="tanh", tie_word_embeddings=False),
        {"input_ids": CHOICES, **CHOSEN},
    ),
}  # fmt: skip


def config_of(name):
    return GPT2Config(**SMALL | (CASES | HEAD_CASES)[name][0])


def real(outputs, inputs):
    """Outputs by name, flattened; padded rows are zeroed, because nothing depends on them."""
    mask = np.asarray(inputs.get("attention_mask", np.ones(outputs["last_hidden_state"].shape[:2])))
    flat = {}
    for name, value in outputs.items():
        value = np.asarray(value)
        if name.startswith(("logits", "hidden", "last")) and value.shape[1] == mask.shape[1]:
            value = value * mask[:, :, None].astype(value.dtype)
        elif name.startswith(("attention", "cross")):
            value = value * mask[:, None, :, None].astype(value.dtype)
        flat[name] = value
    return flat


def by_name(out):
    """A GPT2Output as {name: array}, tuples numbered."""
    named = {"logits": out.logits, "last_hidden_state": out.last_hidden_state}
    if out.loss is not None:
        named["loss"] = out.loss
    for field in ("hidden_states", "attentions", "cross_attentions"):
        for i, array in enumerate(getattr(out, field) or ()):
            named[f"{field}.{i}"] = array
    return named
