"""The usual mistakes: each a name, a sentence that says what to do, and what it computes.

They are what ports have got wrong in public, and what differs in the models that people come from
(BERT: erf GELU, post-LN; Llama: RMSNorm; the Transformer of 2017: √C times the embedding). Where
two compute the same, the first in the list is named.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

from npgpt2.golden.forward import Switches
from npgpt2.model.config import GPT2Config


class Mistake(NamedTuple):
    """One way to compute wrongly.

    Attributes:
        name: a few words.
        sentence: what the port does; what the model does.
        how: what a forward pass computes with it.
    """

    name: str
    sentence: str
    how: Switches = Switches()


LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NORMS = ("ln_1", "ln_2", "ln_f")

# name, what it is, what it computes
ACTIVATIONS = {
    "gelu_new": ("tanh GELU", "GELU in the tanh form"),
    "gelu": ("erf GELU", "GELU in the erf form"),
    "quick_gelu": ("sigmoid GELU", "GELU in the sigmoid form, x · σ(1.702 x)"),
    "none": ("no activation", "missing"),
    "relu": ("ReLU", "ReLU"),
    "silu": ("SiLU", "SiLU, x · σ(x)"),
    "tanh": ("tanh", "tanh"),
    "0.44715": ("GELU with 0.44715", "GELU with 0.44715 where 0.044715 belongs"),
    "no root": ("GELU with 2/π for its root", "GELU with 2/π where √(2/π) belongs"),
    "no half": ("GELU without its half", "twice GELU, without its factor 1/2"),
}
TYPOS = ("0.44715", "no root", "no half")  # of the tanh form
ALIKE = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
FORMULA = "x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))"

SCALES = {
    "1": ("no 1/sqrt(d)", "1, not at all"),
    "1/sqrt(d)": ("1/sqrt(d)", "1/√D"),
    "1/sqrt(d)/(layer + 1)": ("1/sqrt(d)/(layer + 1)", "1/√D / (layer + 1)"),
    "1/d": ("1/d for 1/sqrt(d)", "1/D"),
    "1/sqrt(c)": ("1/sqrt(n_embd) for 1/sqrt(d)", "1/√n_embd"),
}


def forward_mistakes(config: GPT2Config) -> tuple[Mistake, ...]:
    """Those of a forward pass, in the order in which they are asked for.

    >>> [m.name for m in forward_mistakes(GPT2Config())][:3]
    ['positions begin at 1', 'no positions', 'widened embeddings']
    """
    return (
        *_embedding(),
        *_layer_norm(config),
        *_linear(),
        *_attention(config),
        *_stream(),
        *_activation(config),
        *_head(config),
    )


def _embedding() -> Iterator[Mistake]:
    yield Mistake(
        "positions begin at 1",
        "your positions begin at 1: the first token's is 0",
        Switches(shift=1),
    )
    yield Mistake(
        "no positions",
        "you do not add wpe: GPT-2 adds a learnt vector for each position to the token's",
        Switches(shift=None),
    )
    yield Mistake(
        "widened embeddings",
        "you multiply the embeddings by √n_embd: GPT-2 takes them as they are",
        Switches(widened=True),
    )


def _layer_norm(config: GPT2Config) -> Iterator[Mistake]:
    yield Mistake(
        "post-LN",
        "your LayerNorm stands behind the residual sums: GPT-2's stands before attention and MLP, "
        "x + attn(ln_1(x)), then x + mlp(ln_2(x)), and ln_f is at the end",
        Switches(post=True),
    )
    right = config.layer_norm_epsilon
    for eps in (1e-5, 1e-6, 1e-12, 1e-3):
        if eps != right:
            sentence = (
                f"your LayerNorm has an eps of about {eps:g}, or has it outside the root: this "
                f"model's is {right:g}, in the root"
            )
            yield Mistake(f"eps {eps:g}", sentence, Switches(eps=eps))
    yield Mistake(
        "unbiased variance",
        "your LayerNorm divides the sum of squares by n − 1: GPT-2's variance is the biased one, "
        "divided by n",
        Switches(unbiased=True),
    )
    yield Mistake(
        "RMSNorm",
        "your LayerNorm does not subtract the mean: that is RMSNorm, GPT-2's subtracts it",
        Switches(centred=False),
    )
    yield Mistake(
        "LayerNorm without weight and bias",
        "your LayerNorm does not multiply by its weight and add its bias: every one has both",
        Switches(affine=False),
    )
    yield from map(_unbias, NORMS)
    yield Mistake(
        "missing ln_f",
        "you leave out ln_f: GPT-2 normalises once more between the last block and the head",
        Switches(final=False),
    )


def _linear() -> Iterator[Mistake]:
    yield _flipped(*LINEARS)
    yield from map(_flipped, LINEARS)
    yield _unbias(*LINEARS)
    yield from map(_unbias, LINEARS)


def _flipped(*linears: str) -> Mistake:
    names = ", ".join(linears) if len(linears) < len(LINEARS) else "every linear layer"
    sentence = (
        f"you read the weight of {names} as (out, in): GPT-2's checkpoints have (in, out), "
        "so y = x · W + b without a transpose"
    )
    return Mistake(f"transposed weight: {names}", sentence, Switches(flipped=linears))


def _unbias(*parts: str) -> Mistake:
    names = ", ".join(parts) if len(parts) < len(LINEARS) else "any linear layer"
    sentence = f"you do not add the bias of {names}: every linear layer and LayerNorm has one"
    return Mistake(f"missing bias: {names}", sentence, Switches(unbias=parts))


def _attention(config: GPT2Config) -> Iterator[Mistake]:
    right = "1/sqrt(d)" if config.scale_attn_weights else "1"
    if config.scale_attn_by_inverse_layer_idx:
        right += "/(layer + 1)"
    for key, (name, factor) in SCALES.items():
        if key != right:
            sentence = f"you scale q · k by {factor}: this model by {right}, d = n_embd / n_head"
            yield Mistake(name, sentence, Switches(scale=key))
    rule = "Key j is seen by query i where j <= i"
    yield Mistake(
        "no mask",
        f"your attention has no causal mask: a token must not see those after it. {rule}",
        Switches(future=None),
    )
    yield Mistake(
        "mask off by one: sees the next",
        f"your causal mask is off by one: a token sees the one after it. {rule}",
        Switches(future=1),
    )
    for empty in ("zeros", "uniform", "nan"):
        yield Mistake(
            "mask off by one: not itself",
            f"your causal mask is off by one: a token does not see itself. {rule}",
            Switches(future=-1, empty=empty),
        )
    yield Mistake(
        "softmax over queries",
        "your softmax runs over the queries: its sums run over the keys, the last axis",
        Switches(over="queries"),
    )
    for turned in (False, True):
        for order in map("".join, permutations("qkv")):
            if order != "qkv":
                sentence = f"you take the thirds of c_attn for {', '.join(order)}: they are q, k, v"
                yield Mistake(f"{order} for qkv", sentence, Switches(parts=order, turned=turned))
    yield from _heads()


def _heads() -> Iterator[Mistake]:
    for name, words, split, merged in (
        ("split along the wrong axis", "split q, k and v as (D, H)", "(D, H)", "(H, D)"),
        ("split and merged along the wrong axis", "split and merge heads as (D, H)",
         "(D, H)", "(D, H)"),
        ("merged along the wrong axis", "merge heads as (D, H)", "(H, D)", "(D, H)"),
        ("split without a transpose", "read q, k and v, which lie (T, H, D), as (H, T, D)",
         "no transpose", "(H, D)"),
        ("split and merged without a transpose",
         "read q, k and v, which lie (T, H, D), as (H, T, D), and write them back so",
         "no transpose", "no transpose"),
        ("merged without a transpose",
         "read the heads' output, which lies (H, T, D), as (T, H, D)", "(H, D)", "no transpose"),
        ("interleaved with q, k, v", "read c_attn's output as (H, 3, D)", "(H, 3, D)", "(H, D)"),
    ):  # fmt: skip
        sentence = (
            f"you {words}: in GPT-2 number h·D + d of q, of k, of v and of what goes into c_proj "
            "is number d of head h"
        )
        yield Mistake(f"heads {name}", sentence, Switches(split=split, merged=merged))


def _stream() -> Iterator[Mistake]:
    yield Mistake(
        "residual from the normalised",
        "you add attention and MLP to what LayerNorm gave: they are added to what went into it",
        Switches(onto="normalised"),
    )
    yield Mistake(
        "no residual",
        "you do not add what went into attention and MLP to what comes out",
        Switches(onto="nothing"),
    )


def _activation(config: GPT2Config) -> Iterator[Mistake]:
    right = ALIKE.get(config.activation_function, config.activation_function)
    form = ACTIVATIONS[right][1]
    right_words = (
        f"GPT-2 uses the tanh form, {FORMULA}"
        if right == "gelu_new"
        else (f"this model's is {form}")
    )
    for key, (name, words) in ACTIVATIONS.items():
        if key == right or (key in TYPOS and right != "gelu_new"):
            continue
        gelu = words.startswith("GELU in ")
        what = f"GELU is {words.removeprefix('GELU in ')}" if gelu else f"activation is {words}"
        yield Mistake(name, f"your {what}: {right_words}", Switches(activation=key))


def _head(config: GPT2Config) -> Iterator[Mistake]:
    if not config.tie_word_embeddings:
        yield Mistake(
            "tied head",
            "you take wte for the head: this model has its own, lm_head.weight",
            Switches(head="wte"),
        )


# ── of other cases ───────────────────────────────────────────────────────────────────────────────

PADDED = (
    Mistake(
        "positions of padding counted",
        "you count positions by column: in a left-padded row a token's position is its index among "
        "the real tokens",
    ),
    Mistake(
        "padding is seen", "your attention sees padding: keys under a 0 of the mask are hidden"
    ),
    Mistake(
        "padding is seen and counted",
        "you ignore the attention mask: padding is hidden from attention, and not counted in "
        "positions",
    ),
)
STEP = (
    Mistake(
        "positions begin anew behind the cache",
        "your positions begin at 0 again in a step: they go on behind the cache",
    ),
    Mistake("the cache is not seen", "your step attends to its own key only, not to the cache"),
)
GRADIENTS = (
    Mistake("sum for mean", "your loss is the sum over the tokens: it is their mean"),
    Mistake("mean of rows", "your loss is a sum over the tokens of a row: it is the mean of all"),
    Mistake(
        "targets not shifted", "your targets are the tokens themselves: a target is the token after"
    ),
    Mistake(
        "wte: only the embedding's gradient",
        "you leave the head's part out of wte's gradient: it is tied, so the two are added",
    ),
    Mistake(
        "wte: only the head's gradient",
        "you leave the embedding's part out of wte's gradient: it is tied, so the two are added",
    ),
)
ADAMW = (
    Mistake(
        "no bias correction",
        "your AdamW does not correct its moments: m / (1 − β1ᵗ) and v / (1 − β2ᵗ)",
    ),
    Mistake("eps inside the root", "your AdamW has eps under the root: it is √v + eps"),
    Mistake(
        "weight decay on every parameter",
        "you shrink biases and LayerNorms too: here weight decay reaches matrices only",
    ),
    Mistake("no weight decay", "you leave weight decay out: p shrinks by lr · weight_decay · p"),
    Mistake(
        "weight decay in the gradient",
        "you add weight decay to the gradient (L2): AdamW keeps it out of the moments",
    ),
)
