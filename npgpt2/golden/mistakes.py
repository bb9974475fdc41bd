"""The usual mistakes: each has a name, a sentence for the user, and the switches that compute it.

They are mistakes of published ports, and differences to other well-known models (BERT: erf GELU,
post-LN; Llama: RMSNorm; the Transformer of 2017: embeddings times √C). If two mistakes compute the
same, the first one in the list is reported.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

from npgpt2.golden.forward import Switches
from npgpt2.model.config import GPT2Config


class Mistake(NamedTuple):
    """One way to compute wrongly.

    Attributes:
        name: a short name.
        sentence: what the port does wrong, and what the model does.
        how: switches of a forward pass with this mistake.
    """

    name: str
    sentence: str
    how: Switches = Switches()


LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NORMS = ("ln_1", "ln_2", "ln_f")

# activation → (name of the mistake, description)
ACTIVATIONS = {
    "gelu_new": ("tanh GELU", "GELU in the tanh form"),
    "gelu": ("erf GELU", "GELU in the erf form"),
    "quick_gelu": ("sigmoid GELU", "GELU in the sigmoid form, x · σ(1.702 x)"),
    "none": ("no activation", "missing"),
    "relu": ("ReLU", "ReLU"),
    "silu": ("SiLU", "SiLU, x · σ(x)"),
    "tanh": ("tanh", "tanh"),
    "0.44715": ("GELU with 0.44715", "GELU with 0.44715 instead of 0.044715"),
    "no root": ("GELU with 2/π", "GELU with 2/π instead of √(2/π)"),
    "no half": ("GELU without 1/2", "GELU without the factor 1/2"),
}
TYPOS = ("0.44715", "no root", "no half")  # wrong variants of the tanh form
ALIKE = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
FORMULA = "x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))"

SCALES = {
    "1": ("no 1/sqrt(d)", "1 (no scaling)"),
    "1/sqrt(d)": ("1/sqrt(d)", "1/√D"),
    "1/sqrt(d)/(layer + 1)": ("1/sqrt(d)/(layer + 1)", "1/√D / (layer + 1)"),
    "1/d": ("1/d instead of 1/sqrt(d)", "1/D"),
    "1/sqrt(c)": ("1/sqrt(n_embd) instead of 1/sqrt(d)", "1/√n_embd"),
}


def forward_mistakes(config: GPT2Config) -> tuple[Mistake, ...]:
    """The mistakes of a forward pass, in the order in which they are tried.

    >>> [m.name for m in forward_mistakes(GPT2Config())][:3]
    ['positions begin at 1', 'no positions', 'scaled embeddings']
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
        "your positions begin at 1: the first position is 0",
        Switches(shift=1),
    )
    yield Mistake(
        "no positions",
        "you do not add wpe: GPT-2 adds a learned position embedding to each token embedding",
        Switches(shift=None),
    )
    yield Mistake(
        "scaled embeddings",
        "you multiply the embeddings by √n_embd: GPT-2 does not scale them",
        Switches(widened=True),
    )


def _layer_norm(config: GPT2Config) -> Iterator[Mistake]:
    yield Mistake(
        "post-LN",
        "your LayerNorm comes after the residual sums: GPT-2's comes before attention and MLP, "
        "x + attn(ln_1(x)), then x + mlp(ln_2(x)), with ln_f at the end",
        Switches(post=True),
    )
    right = config.layer_norm_epsilon
    for eps in (1e-5, 1e-6, 1e-12, 1e-3):
        if eps != right:
            sentence = (
                f"your LayerNorm uses an eps of about {eps:g}, or adds it outside the square root: "
                f"this model adds {right:g} inside the root"
            )
            yield Mistake(f"eps {eps:g}", sentence, Switches(eps=eps))
    yield Mistake(
        "unbiased variance",
        "your LayerNorm divides the sum of squares by n − 1: GPT-2 uses the biased variance, "
        "divided by n",
        Switches(unbiased=True),
    )
    yield Mistake(
        "RMSNorm",
        "your LayerNorm does not subtract the mean, as in RMSNorm: GPT-2's subtracts it",
        Switches(centred=False),
    )
    yield Mistake(
        "LayerNorm without weight and bias",
        "your LayerNorm leaves out its weight and bias: every LayerNorm of GPT-2 has both",
        Switches(affine=False),
    )
    yield from map(_unbias, NORMS)
    yield Mistake(
        "missing ln_f",
        "you leave out ln_f: GPT-2 applies this LayerNorm between the last block and the head",
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
        f"you read the weight of {names} as (out, in): GPT-2's checkpoints store (in, out), "
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
            sentence = f"you scale q · k by {factor}: this model uses {right}, d = n_embd / n_head"
            yield Mistake(name, sentence, Switches(scale=key))
    rule = "Query i attends to key j only if j <= i"
    yield Mistake(
        "no mask",
        f"your attention has no causal mask: a token must not attend to later tokens. {rule}",
        Switches(future=None),
    )
    yield Mistake(
        "mask off by one: sees the next",
        f"your causal mask is off by one: a token attends to the next one. {rule}",
        Switches(future=1),
    )
    for empty in ("zeros", "uniform", "nan"):
        yield Mistake(
            "mask off by one: not itself",
            f"your causal mask is off by one: a token does not attend to itself. {rule}",
            Switches(future=-1, empty=empty),
        )
    yield Mistake(
        "softmax over queries",
        "your softmax runs over the queries: it must run over the keys, the last axis",
        Switches(over="queries"),
    )
    for turned in (False, True):
        for order in map("".join, permutations("qkv")):
            if order != "qkv":
                sentence = f"you read the thirds of c_attn as {', '.join(order)}: they are q, k, v"
                yield Mistake(f"{order} for qkv", sentence, Switches(parts=order, turned=turned))
    yield from _heads()


def _heads() -> Iterator[Mistake]:
    for name, words, split, merged in (
        ("split along the wrong axis", "split q, k and v as (D, H)", "(D, H)", "(H, D)"),
        ("split and merged along the wrong axis", "split and merge heads as (D, H)",
         "(D, H)", "(D, H)"),
        ("merged along the wrong axis", "merge heads as (D, H)", "(H, D)", "(D, H)"),
        ("split without a transpose", "reshape q, k and v from (T, H, D) to (H, T, D)",
         "no transpose", "(H, D)"),
        ("split and merged without a transpose",
         "reshape q, k and v from (T, H, D) to (H, T, D), and the heads' output back",
         "no transpose", "no transpose"),
        ("merged without a transpose",
         "reshape the heads' output from (H, T, D) to (T, H, D)", "(H, D)", "no transpose"),
        ("interleaved with q, k, v", "read c_attn's output as (H, 3, D)", "(H, 3, D)", "(H, D)"),
    ):  # fmt: skip
        sentence = (
            f"you {words}: in GPT-2, element h·D + d of q, k, v and of the input of c_proj is "
            "element d of head h"
        )
        yield Mistake(f"heads {name}", sentence, Switches(split=split, merged=merged))


def _stream() -> Iterator[Mistake]:
    yield Mistake(
        "residual from LayerNorm's output",
        "you add attention and MLP to the output of LayerNorm: they are added to its input",
        Switches(onto="normalised"),
    )
    yield Mistake(
        "no residual",
        "you do not add attention and MLP to the residual stream",
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
            "you use wte as the head: this model has its own head, lm_head.weight",
            Switches(head="wte"),
        )


# ── mistakes of other cases ──────────────────────────────────────────────────────────────────────

PADDED = (
    Mistake(
        "positions count padding",
        "your positions count padding: in a left-padded row, a token's position is its index among "
        "the real tokens",
    ),
    Mistake("padding not masked", "you attend to padding: mask the keys where attention_mask is 0"),
    Mistake(
        "attention mask ignored",
        "you ignore the attention mask: attention must skip padding, and positions must not count "
        "it",
    ),
)
STEP = (
    Mistake(
        "positions restart after the cache",
        "your positions restart at 0 in a decode step: they continue after the cache",
    ),
    Mistake("KV cache ignored", "your decode step attends to its own key only, not to the cache"),
)
GRADIENTS = (
    Mistake("sum instead of mean", "your loss is the sum over the tokens: it must be their mean"),
    Mistake(
        "sum over rows", "your loss is the sum of each row's mean: it must be the mean over tokens"
    ),
    Mistake(
        "targets not shifted", "your targets are the input tokens: each target is the next token"
    ),
    Mistake(
        "wte: only the embedding's gradient",
        "you leave the head's part out of wte's gradient: the head is tied, so add both parts",
    ),
    Mistake(
        "wte: only the head's gradient",
        "you leave the embedding's part out of wte's gradient: the head is tied, so add both parts",
    ),
)
ADAMW = (
    Mistake(
        "no bias correction",
        "your AdamW lacks the bias correction of its moments: m / (1 − β1ᵗ) and v / (1 − β2ᵗ)",
    ),
    Mistake("eps inside the root", "your AdamW adds eps inside the square root: it is √v + eps"),
    Mistake(
        "weight decay on every parameter",
        "you decay biases and LayerNorms too: here weight decay applies to matrices only",
    ),
    Mistake("no weight decay", "you leave out weight decay: subtract lr · weight_decay · p"),
    Mistake(
        "weight decay in the gradient",
        "you add weight decay to the gradient (L2): AdamW keeps it out of the moments",
    ),
)
