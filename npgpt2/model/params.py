"""The parameter tree: an attribute path is a checkpoint key.

`params.h[3].attn.c_attn.weight` is the tensor `h.3.attn.c_attn.weight`. The leaves of a node are in
the order of the arguments of the function that uses them, so a node can be unpacked into the call:
`linear(x, *p.c_fc)`. Linear weights are (in, out), as in OpenAI's checkpoints: `x @ w + b`.

Axes: C n_embd, H heads (of this layer), D head_dim, F mlp width, V vocabulary, N positions.
"""

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_type_hints

from npgpt2.base.arrays import Array
from npgpt2.base.notebook import show_tree
from npgpt2.model.config import GPT2Config


class Embedding(NamedTuple):
    weight: Array


class Linear(NamedTuple):
    weight: Array
    bias: Array


class LayerNorm(NamedTuple):
    weight: Array
    bias: Array


class Attention(NamedTuple):
    c_attn: Linear
    c_proj: Linear


class CrossAttention(NamedTuple):
    q_attn: Linear
    c_attn: Linear
    c_proj: Linear


class MLP(NamedTuple):
    c_fc: Linear
    c_proj: Linear


class Block(NamedTuple):
    ln_1: LayerNorm
    attn: Attention
    ln_2: LayerNorm
    mlp: MLP
    ln_cross_attn: LayerNorm | None = None
    crossattention: CrossAttention | None = None


class Head(NamedTuple):
    """A linear layer as PyTorch stores it: weight (out, in)."""

    weight: Array
    bias: Array | None = None


class Summary(NamedTuple):
    summary: Head


class Params(NamedTuple):
    wte: Embedding
    wpe: Embedding
    h: tuple[Block, ...]
    ln_f: LayerNorm
    lm_head: Embedding | None = None  # None: tied to wte
    score: Head | None = None
    classifier: Head | None = None
    qa_outputs: Head | None = None
    multiple_choice_head: Summary | None = None

    @property
    def head(self) -> Array:
        """(V, C) the matrix that maps hidden states to logits."""
        return (self.lm_head or self.wte).weight


def param_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a GPT-2, in the order of the forward pass.

    This is the only list of parameters: code that visits all of them uses it or the tree.

    >>> shapes = param_shapes(GPT2Config())
    >>> len(shapes), shapes["h.11.mlp.c_fc.weight"]
    (148, (768, 3072))
    """
    c, f, d = config.n_embd, config.mlp_width, config.head_dim

    def linear(path: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
        return {f"{path}.weight": (n_in, n_out), f"{path}.bias": (n_out,)}

    def layer_norm(path: str) -> dict[str, tuple[int, ...]]:
        return {f"{path}.weight": (c,), f"{path}.bias": (c,)}

    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, c),
        "wpe.weight": (config.n_positions, c),
    }
    for i in range(config.n_layer):
        h, hd = f"h.{i}", config.heads_left(i) * d
        shapes |= layer_norm(f"{h}.ln_1")
        shapes |= linear(f"{h}.attn.c_attn", c, 3 * hd)
        shapes |= linear(f"{h}.attn.c_proj", hd, c)
        if config.add_cross_attention:
            shapes |= layer_norm(f"{h}.ln_cross_attn")
            shapes |= linear(f"{h}.crossattention.q_attn", c, c)
            shapes |= linear(f"{h}.crossattention.c_attn", c, 2 * c)
            shapes |= linear(f"{h}.crossattention.c_proj", c, c)
        shapes |= layer_norm(f"{h}.ln_2")
        shapes |= linear(f"{h}.mlp.c_fc", c, f)
        shapes |= linear(f"{h}.mlp.c_proj", f, c)
    shapes |= layer_norm("ln_f")
    writes = config.head in ("lm_head", "multiple_choice_head")
    if writes and not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, c)
    return shapes | _head_shapes(config)


def _head_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The parameters of a head other than lm_head."""
    outputs = {"qa_outputs": 2, "multiple_choice_head": 1}.get(config.head, len(config.labels))
    path = {"multiple_choice_head": "multiple_choice_head.summary"}.get(config.head, config.head)
    shapes: dict[str, tuple[int, ...]] = {f"{path}.weight": (outputs, config.n_embd)}
    if config.head != "score":  # the only head without a bias
        shapes[f"{path}.bias"] = (outputs,)
    return {} if config.head == "lm_head" else shapes


def build_tree(tensors: Mapping[str, Array]) -> Params:
    """Build the tree from tensors that are named as in `param_shapes`.

    >>> import numpy as np
    >>> config = GPT2Config(vocab_size=5, n_positions=4, n_embd=2, n_layer=1, n_head=1)
    >>> params = build_tree({name: np.zeros(s) for name, s in param_shapes(config).items()})
    >>> params.h[0].attn.c_attn.weight.shape
    (2, 6)
    """
    nested: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = tensor
    tree: Params = _build(Params, nested)
    return tree


def _build(kind: type[Any], node: dict[str, Any]) -> Any:
    children = {}
    for field, hint in get_type_hints(kind).items():
        if field not in node:
            continue  # an optional part: `param_shapes` decides which a model has
        if isinstance(hint, UnionType):
            hint = next(arg for arg in get_args(hint) if arg is not NoneType)
        child = node[field]
        if hasattr(hint, "_fields"):
            child = _build(hint, child)
        elif field == "h":
            child = tuple(_build(Block, child[str(i)]) for i in range(len(child)))
        children[field] = child
    return kind(**children)


def named_parameters(node: Any, path: str = "") -> Iterator[tuple[str, Array]]:
    """Yield every parameter below a node of the tree, with its checkpoint key.

    >>> import numpy as np
    >>> [name for name, _ in named_parameters(LayerNorm(np.ones(2), np.zeros(2)), "ln_f")]
    ['ln_f.weight', 'ln_f.bias']
    """
    if node is None:
        return
    if not isinstance(node, tuple):
        yield path, node
        return
    keys = getattr(node, "_fields", range(len(node)))
    for key, child in zip(keys, node, strict=True):
        yield from named_parameters(child, f"{path}.{key}" if path else str(key))


show_tree(
    (Embedding, Linear, LayerNorm, Attention, CrossAttention, MLP, Block, Head, Summary, Params),
    named_parameters,
)
