"""GPT-2's hyper-parameters, as in a checkpoint folder's config.json.

Field names and defaults are those of transformers' `GPT2Config`
(https://huggingface.co/docs/transformers/model_doc/gpt2); the defaults are OpenAI's 124M model.
"""

import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from npgpt2.base.errors import ConfigError
from npgpt2.base.files import read_json
from npgpt2.model.ops import ACTIVATIONS

# transformers' attribute_map: general names that some tools write instead of GPT-2's own.
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

# The classes with a head other than lm_head, and the checkpoint name of that head.
HEADS = {
    "GPT2ForSequenceClassification": "score",
    "GPT2ForTokenClassification": "classifier",
    "GPT2ForQuestionAnswering": "qa_outputs",
    "GPT2DoubleHeadsModel": "multiple_choice_head",
}
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# Fields that only these heads read and write.
OF_HEADS = {
    "id2label": ("score", "classifier"),
    "problem_type": ("score", "classifier"),
    "summary_activation": ("multiple_choice_head",),
}

# Keys that change what a model computes and are not implemented here, each with the values that
# change nothing. Keys that are neither here nor in GPT2Config are ignored: they are labels, or
# defaults for training or tools.
REFUSED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "is_encoder_decoder": (False, None),
    "position_embedding_type": ("absolute", None), "rope_scaling": (None,),
    "rope_parameters": (None,), "rotary_dim": (None, 0), "alibi": (False, None),
    "multi_query": (False, None), "attention_head_type": ("multihead", None),  # santacoder's name
    "num_key_value_heads": (None,), "sliding_window": (None,), "window_size": (None,),
    "attention_layers": (None,), "use_parallel_residual": (False, None),
    "parallel_attn": (False, None), "normalize_before": (True, None),
    "apply_residual_connection_post_layernorm": (False, None), "num_experts": (None, 0),
    "mup_width_scale": (None, 1.0), "mup_embeddings_scale": (None, 1.0),
    "mup_output_alpha": (None, 1.0), "mup_scale_qk_dot_by_d": (False, None),
}  # fmt: skip

HIGHEST = {"initializer_range": math.inf, "layer_norm_epsilon": 1.0}
FLAGS = (
    "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "use_cache", "reorder_and_upcast_attn",
    "add_cross_attention", "tie_word_embeddings",
)  # fmt: skip

ELSEWHERE = "This architecture is not implemented here. Use transformers"


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2 and the switches of its computation. Frozen and validated.

    Raises:
        ConfigError: a field has the wrong type or range, or is not implemented.

    >>> config = GPT2Config(n_layer=2, n_head=4, n_embd=64)
    >>> config.head_dim, config.mlp_width, config.attention_scale(layer=0)
    (16, 256, 0.25)
    """

    vocab_size: int = 50257  #: V, tokens of the vocabulary
    n_positions: int = 1024  #: N, the context: tokens that the model can see at once
    n_embd: int = 768  #: C, values of each token's vector
    n_layer: int = 12  #: L, blocks
    n_head: int = 12  #: H, attention heads of a block
    n_inner: int | None = None  #: F, width of the MLP; None: 4 · n_embd
    activation_function: str = "gelu_new"  #: of the MLP: a name in ops.ACTIVATIONS
    resid_pdrop: float = 0.1  #: dropout on what blocks add to the stream, in training
    embd_pdrop: float = 0.1  #: dropout on the embeddings, in training
    attn_pdrop: float = 0.1  #: dropout on attention probabilities, in training
    layer_norm_epsilon: float = 1e-5  #: added to the variance in LayerNorm
    initializer_range: float = 0.02  #: standard deviation of random weights
    scale_attn_weights: bool = True  #: divide attention scores by √D
    scale_attn_by_inverse_layer_idx: bool = False  #: and by the layer's number, from 1
    reorder_and_upcast_attn: bool = False  #: no effect: scores are never less than float32 here
    add_cross_attention: bool = False  #: blocks also attend to an encoder
    tie_word_embeddings: bool = True  #: the head is wte itself
    use_cache: bool = True  #: a call returns a KV cache, unless told otherwise
    bos_token_id: int | None = 50256  #: the token that begins a text
    eos_token_id: int | tuple[int, ...] | None = 50256  #: the token, or tokens, that end one
    pad_token_id: int | None = None  #: the token that fills up a row
    #: by layer, the attention heads that were taken out of it
    pruned_heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict, hash=False)
    architectures: tuple[str, ...] = ("GPT2LMHeadModel",)  #: the first names the head
    #: by number, the labels of a classifier
    id2label: Mapping[int, str] = field(default_factory=dict, hash=False)
    problem_type: str | None = None  #: of a classifier: how logits become an answer
    summary_activation: str | None = None  #: of a double-heads model's choice

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            # 2^31 bounds every real model and keeps shape products exact.
            good = _is_whole(value) and 0 < value < 2**31
            good = good or (name == "n_inner" and value is None)
            self._require(name, good, "an integer from 1 to 2147483647")
        parted = self.n_embd % self.n_head == 0
        self._require("n_embd", parted, f"a multiple of n_head ({self.n_head})")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", *HIGHEST):
            value, high = getattr(self, name), HIGHEST.get(name, 1.0)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            good = number and 0 <= value <= min(high, sys.float_info.max)
            self._require(name, good, f"a number from 0 to {high:g}")
        for name in FLAGS:
            self._require(name, isinstance(getattr(self, name), bool), "true or false")
        act = self.activation_function
        good = isinstance(act, str) and act in ACTIVATIONS
        self._require("activation_function", good, f"one of {', '.join(sorted(ACTIVATIONS))}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = value if name == "eos_token_id" and isinstance(value, (list, tuple)) else (value,)
            self._require(name, all(i is None or _is_whole(i) for i in ids), "a token id or null")
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        self._normalize_pruned_heads()
        self._normalize_labels()

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            text = f"{name}: got {_short(getattr(self, name))}, expected {expected}"
            raise ConfigError(text) from None

    def _normalize_pruned_heads(self) -> None:
        """Convert JSON's string keys to layer numbers, and each layer's heads to a sorted tuple."""
        pruned: dict[int, tuple[int, ...]] = {}
        heads_of: Any = self.pruned_heads or {}
        try:
            for layer, heads in heads_of.items():
                pruned[int(layer)] = tuple(sorted({int(head) for head in heads}))
        except (AttributeError, OverflowError, TypeError, ValueError):
            self._require("pruned_heads", False, "{layer: [heads]}")
        for layer, heads in pruned.items():
            if not 0 <= layer < self.n_layer:
                raise ConfigError(
                    f"pruned_heads: got layer {layer}, expected 0 to {self.n_layer - 1}"
                )
            if any(not 0 <= head < self.n_head for head in heads):
                raise ConfigError(
                    f"pruned_heads: got heads {list(heads)} in layer {layer}, "
                    f"expected 0 to {self.n_head - 1}"
                )
            if len(heads) == self.n_head:
                raise ConfigError(
                    f"pruned_heads: got all {self.n_head} heads of layer {layer}, expected fewer"
                )
        object.__setattr__(self, "pruned_heads", {k: v for k, v in pruned.items() if v})

    def _normalize_labels(self) -> None:
        """Convert JSON's string keys to numbers. The default is two labels, LABEL_0 and LABEL_1."""
        object.__setattr__(self, "architectures", self.architectures or ("GPT2LMHeadModel",))
        names, kind, act = self.architectures, self.problem_type, self.summary_activation or None
        good = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        self._require("architectures", good, "names of classes")
        good = kind is None or kind in PROBLEMS
        self._require("problem_type", good, f"null or one of {', '.join(PROBLEMS)}")
        good = act is None or (isinstance(act, str) and act in ACTIVATIONS)
        known = ", ".join(sorted(ACTIVATIONS))
        self._require("summary_activation", good, f"null or one of {known}")
        object.__setattr__(self, "summary_activation", act)
        if self.head not in ("score", "classifier"):
            return
        given: Any = self.id2label or {0: "LABEL_0", 1: "LABEL_1"}
        try:
            labels = {int(i): str(label) for i, label in given.items()}
        except (AttributeError, OverflowError, TypeError, ValueError):
            self._require("id2label", False, "a name for each label number from 0")
        # As many labels as names; missing names are LABEL_i, as in transformers.
        named = {i: labels.get(i, f"LABEL_{i}") for i in range(len(labels))}
        object.__setattr__(self, "id2label", named)

    @property
    def head(self) -> str:
        """The checkpoint name of the head after ln_f: "lm_head", or one of `HEADS`.

        >>> GPT2Config(architectures=("GPT2ForSequenceClassification",)).head
        'score'
        """
        return HEADS.get(self.architectures[0], "lm_head")

    def language_model(self, source: str) -> "GPT2Config":
        """The config of the language model alone, for a model that also has another head.

        Raises:
            ConfigError: the model has no lm_head. `source` is the prefix of the message.
        """
        if self.head not in ("lm_head", "multiple_choice_head"):
            raise ConfigError(
                f"{source}: is a {self.architectures[0]}, expected a language model. "
                "'npgpt2 classify' runs it, in Python npgpt2.GPT2WithHead"
            )
        return replace(self, architectures=("GPT2LMHeadModel",))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels, in the order of their numbers."""
        return tuple(self.id2label.values())

    @property
    def head_dim(self) -> int:
        """D, the width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        """F, the width of the MLP's hidden layer: `n_inner`, or 4 · `n_embd` if it is None."""
        return self.n_inner or 4 * self.n_embd

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """All ids that end a text; may be empty."""
        eos = self.eos_token_id
        return frozenset(() if eos is None else (eos,) if isinstance(eos, int) else eos)

    def heads_left(self, layer: int) -> int:
        """H of one layer: `n_head` minus the heads that are pruned there."""
        return self.n_head - len(self.pruned_heads.get(layer, ()))

    def attention_scale(self, layer: int) -> float:
        """The factor on `q · k` in one layer. A Python float, so that it promotes no float32 array.

        >>> GPT2Config(scale_attn_by_inverse_layer_idx=True).attention_scale(layer=3)
        0.03125
        """
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> "GPT2Config":
        """Read config.json's keys. `source` is the prefix of every error message.

        Raises:
            ConfigError: another architecture, a key that is not implemented, a value out of range.

        >>> GPT2Config.from_dict({"n_layer": 24, "n_embd": 1024, "n_head": 16}).head_dim
        64
        """
        kind = values.get("model_type", "gpt2")
        names = values.get("architectures") or []
        if not isinstance(names, list):
            raise ConfigError(f"{source}: architectures is {names!r}, expected a list of names")
        if kind != "gpt2":
            raise ConfigError(
                f"{source}: model_type is {kind!r} ({', '.join(map(str, names or [kind]))}), "
                f"expected 'gpt2'. {ELSEWHERE}"
            )
        for name in names:
            if not str(name).startswith(("GPT2", "TFGPT2", "FlaxGPT2")):
                raise ConfigError(
                    f"{source}: architectures names {name!r}, expected GPT-2. {ELSEWHERE}"
                )
        for key, harmless in REFUSED.items():
            if key in values and values[key] not in harmless:
                raise ConfigError(
                    f"{source}: {key} is {values[key]!r}: not implemented here. "
                    "Expected a plain GPT-2"
                )
        for name in names[:1]:
            _require_head(HEADS.get(_plain(name)), values, source)
        if "auto_map" in values:
            warnings.warn(f"{source}: auto_map names code: ignored, not run", stacklevel=2)
        known = {f.name for f in fields(cls)}
        given = {ALIASES.get(key, key): value for key, value in values.items()}
        given |= {key: values[key] for key in known if key in values}  # GPT-2's own name wins
        if given.get("pruned_heads") is None:
            given.pop("pruned_heads", None)
        given["architectures"] = tuple(map(_plain, names)) or cls.architectures
        count, named = given.get("num_labels"), given.get("id2label")
        if isinstance(count, int) and not (isinstance(named, dict) and len(named) == count):
            given["id2label"] = {i: f"LABEL_{i}" for i in range(min(count, 10**6))}
        given = _of_head(given)
        try:
            return cls(**{key: value for key, value in given.items() if key in known})
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> "GPT2Config":
        """Read a config.json.

        Raises:
            FileError: the file cannot be read.
            ConfigError: the file is not JSON, or see `from_dict`.
        """
        return cls.from_dict(read_json(Path(path), ConfigError), str(path))

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json: the fields, with `model_type` and `architectures`.

        >>> GPT2Config.from_dict(GPT2Config(n_layer=3).to_dict()) == GPT2Config(n_layer=3)
        True
        """
        values = asdict(self)
        values["pruned_heads"] = {str(k): list(v) for k, v in self.pruned_heads.items()}
        values["id2label"] = {str(k): label for k, label in self.id2label.items()}
        values["architectures"] = list(self.architectures)
        return {"model_type": "gpt2", "architectures": [], **_of_head(values)}


def _plain(name: Any) -> str:
    """A class name without the prefix of its framework."""
    return str(name).removeprefix("TF").removeprefix("Flax")


def _of_head(values: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the fields of other heads, such as labels from a language model."""
    head = HEADS.get(values["architectures"][0], "lm_head")
    return {k: value for k, value in values.items() if head in OF_HEADS.get(k, (head,))}


def _require_head(head: str | None, values: Mapping[str, Any], source: str) -> None:
    """Raises ConfigError unless a multiple-choice head projects the state at cls_index."""
    if head != "multiple_choice_head":
        return
    kept = {"summary_type": "cls_index", "summary_use_proj": True, "summary_proj_to_labels": True}
    for key, expected in kept.items():
        if values.get(key, expected) != expected:
            raise ConfigError(
                f"{source}: {key} is {values[key]!r}: not implemented here. Expected {expected!r}"
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # in Python, a bool is an int


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]}…"
