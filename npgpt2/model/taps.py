"""The names under which a forward pass shows its numbers, in the order of the data's flow."""

from typing import NamedTuple

from npgpt2.model.config import GPT2Config


class TapName(NamedTuple):
    """One name: its axes, and what it is.

    Axes: B batch, T tokens, S = past + T, C n_embd, H heads of the layer, D head_dim, F mlp width,
    V vocabulary.
    """

    name: str
    axes: tuple[str, ...]
    words: str
    layer: int | None = None


STREAM, HEADS, WIDE = ("B", "T", "C"), ("B", "T", "H·D"), ("B", "T", "F")
BEFORE = (
    TapName("wte", STREAM, "the tokens' rows of wte"),
    TapName("wpe", STREAM, "the positions' rows of wpe"),
    TapName("embed", STREAM, "their sum: the residual stream begins"),
)
BLOCK = (
    TapName("ln_1", STREAM, "the stream, normalised for attention"),
    TapName("attn.c_attn", ("B", "T", "3·H·D"), "queries, keys, values: (3, H, D) in each token"),
    TapName("attn.probs", ("B", "H", "T", "S"), "softmax of the masked scores: rows sum to 1"),
    TapName("attn.heads", HEADS, "probabilities · values, heads beside each other: (H, D)"),
    TapName("attn.c_proj", STREAM, "attention's part"),
    TapName("resid_attn", STREAM, "the stream + attention's part"),
    TapName("ln_2", STREAM, "the stream, normalised for the MLP"),
    TapName("mlp.c_fc", WIDE, "the MLP, widened"),
    TapName("mlp.act", WIDE, "after the activation"),
    TapName("mlp.c_proj", STREAM, "the MLP's part"),
    TapName("resid_mlp", STREAM, "the stream + the MLP's part: the block's output"),
)
AFTER = (
    TapName("ln_f", STREAM, "the stream, normalised for the head"),
    TapName("logits", ("B", "T", "V"), "ln_f · each row of the head"),
)


def tap_names(config: GPT2Config) -> list[TapName]:
    """All of a model's, in order.

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
