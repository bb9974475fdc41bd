"""The names of the intermediate arrays of a forward pass, in the order of the computation."""

from typing import NamedTuple

from npgpt2.model.config import GPT2Config


class TapName(NamedTuple):
    """The name of an array, its axes, and a description.

    Axes: B batch, T tokens, S = past + T, C n_embd, H heads of the layer, D head_dim, F mlp width,
    V vocabulary.
    """

    name: str
    axes: tuple[str, ...]
    words: str
    layer: int | None = None


STREAM, HEADS, WIDE = ("B", "T", "C"), ("B", "T", "H·D"), ("B", "T", "F")
BEFORE = (
    TapName("wte", STREAM, "rows of wte, by token id"),
    TapName("wpe", STREAM, "rows of wpe, by position"),
    TapName("embed", STREAM, "wte + wpe: the start of the residual stream"),
)
BLOCK = (
    TapName("ln_1", STREAM, "the residual stream, normalised for attention"),
    TapName("attn.c_attn", ("B", "T", "3·H·D"), "queries, keys, values: (3, H, D) per token"),
    TapName("attn.probs", ("B", "H", "T", "S"), "softmax of the masked scores: rows sum to 1"),
    TapName("attn.heads", HEADS, "probabilities · values, heads concatenated: (H, D)"),
    TapName("attn.c_proj", STREAM, "the output of attention"),
    TapName("resid_attn", STREAM, "the residual stream + attn.c_proj"),
    TapName("ln_2", STREAM, "the residual stream, normalised for the MLP"),
    TapName("mlp.c_fc", WIDE, "the hidden layer of the MLP"),
    TapName("mlp.act", WIDE, "the hidden layer after the activation"),
    TapName("mlp.c_proj", STREAM, "the output of the MLP"),
    TapName("resid_mlp", STREAM, "the residual stream + mlp.c_proj: the block's output"),
)
AFTER = (
    TapName("ln_f", STREAM, "the residual stream, normalised for the head"),
    TapName("logits", ("B", "T", "V"), "ln_f · each row of the head"),
)


def tap_names(config: GPT2Config) -> list[TapName]:
    """All tap names of a model, in order.

    >>> names = tap_names(GPT2Config())
    >>> len(names), names[3].name, names[-3].name
    (137, 'h.0.ln_1', 'h.11.resid_mlp')
    """
    blocks = [
        tap._replace(name=f"h.{i}.{tap.name}", layer=i)
        for i in range(config.n_layer)
        for tap in BLOCK
    ]
    return [*BEFORE, *blocks, *AFTER]
