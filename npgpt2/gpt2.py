"""The class `GPT2`: load a checkpoint, run forward passes, generate text.

Axes: B batch, T new tokens, P past, S = P + T, C n_embd, H heads, D head_dim, V vocabulary,
L layers, E tokens of an encoder.
"""

from __future__ import annotations  # so that `help` shows ArrayLike, not what it stands for

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from npgpt2 import arguments
from npgpt2.base import notebook
from npgpt2.base.arrays import Array
from npgpt2.base.errors import ConfigError, InputError, OptionError
from npgpt2.base.files import Progress
from npgpt2.checkpoints.checkpoint import Checkpoint
from npgpt2.checkpoints.convert import save_model
from npgpt2.checkpoints.hub import resolve
from npgpt2.generation.language_model import LanguageModel
from npgpt2.generation.options import EXPLAINED, GenerationOptions
from npgpt2.generation.scoring import cross_entropy
from npgpt2.generation.slots import RaggedCache, Slots
from npgpt2.model.cache import KVCache
from npgpt2.model.config import GPT2Config
from npgpt2.model.forward import Run, Tap, embed, lm_head, transformer
from npgpt2.model.params import (
    Embedding,
    Linear,
    Params,
    build_tree,
    named_parameters,
    param_shapes,
)
from npgpt2.tokenizer.load import vocabulary_of

if TYPE_CHECKING:
    from npgpt2.base.document import Page

FLOATS = {"float32": np.float32, "float64": np.float64}


@dataclass(frozen=True, eq=False)
class GPT2Output:
    """The outputs of a forward pass. Also a tuple of those that are not None, in transformers'
    order.

    Attributes:
        loss: mean cross-entropy in nats, if labels were given.
        logits: (B, T, V), or fewer positions with `logits_to_keep`.
        past_key_values: the KV cache, if one is used.
        hidden_states: L + 1 arrays (B, T, C): the embeddings, each block's output, and ln_f's
            output in place of the last block's.
        attentions: L arrays (B, H, T, S).
        cross_attentions: L arrays (B, H, T, E).
        last_hidden_state: (B, T, C), ln_f's output; only the last positions if `logits_to_keep` is
            given without labels, head_mask, tap, hidden states and attentions. Not in the tuple.
    """

    loss: np.floating[Any] | None
    logits: Array
    past_key_values: KVCache | None
    hidden_states: tuple[Array, ...] | None
    attentions: tuple[Array, ...] | None
    cross_attentions: tuple[Array, ...] | None
    last_hidden_state: Array

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        given = (f"{name}={notebook.brief(value)}" for name, value in values if value is not None)
        return f"GPT2Output({', '.join(given)})"

    def _repr_html_(self) -> str | None:
        """In a notebook: the attention maps of the first row, if there are any."""
        if self.attentions is None:
            return None
        names = [f"h.{i}.attn.probs" for i in range(len(self.attentions))]
        return notebook.maps(repr(self), names, [layer[0] for layer in self.attentions])

    def to_tuple(self) -> tuple[Any, ...]:
        values = (getattr(self, f.name) for f in fields(self)[:-1])
        return tuple(value for value in values if value is not None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return getattr(self, index)
        return self.to_tuple()[index]


class GPT2(LanguageModel):
    """GPT-2 with a language-model head, in NumPy.

    You may write to its parameters. That changes this model in memory and nothing else: not the
    checkpoint's files, and no other model that is loaded from them.

    >>> model = GPT2.from_pretrained("shakespeare")
    >>> out = model([[262, 497]])
    >>> out.logits.shape, out.logits.dtype, out.past_key_values.length
    ((1, 2, 2048), dtype('float32'), 2)
    """

    def __init__(self, config: GPT2Config, params: Params, folder: Path | None = None) -> None:
        self.config, self.params, self.folder = config, params, folder
        self._vocabulary = vocabulary_of(folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: str = "float32",
        *,
        mmap: bool = True,
        strict: bool = False,
        revision: str | None = None,
        token: str | None = None,
        progress: Progress = lambda names, what: names,
    ) -> GPT2:
        """Load a checkpoint from a folder, or a model from the Hugging Face hub.

        Args:
            name: a folder, a name on the hub such as "gpt2", or "shakespeare", the model in this
                package.
            dtype: of weights and computation: "float32" or "float64".
            mmap: map float32 files instead of reading them; see `Checkpoint.read`.
            strict: raise if the weights contain NaN or infinity; otherwise a warning names them.
            revision: branch, tag or commit on the hub.
            token: access token of the hub, instead of HF_TOKEN.
            progress: wraps the loop over tensors.

        Raises:
            FileError, ConfigError, CheckpointError, MissingPackage: see `npgpt2.checkpoints`.
        """
        float_ = numpy_float(dtype)
        folder = resolve(name, revision, token)
        checkpoint = Checkpoint.open(folder)
        config = checkpoint.config.language_model(str(folder))
        params = checkpoint.read(float_, mmap, strict, progress)
        return cls(config, params._replace(multiple_choice_head=None), folder)

    @classmethod
    def from_random(cls, config: GPT2Config, seed: int = 0, dtype: str = "float32") -> GPT2:
        """GPT-2's initialization: N(0, initializer_range), residual projections / √(2 L), biases 0,
        LayerNorm weights 1 (Radford et al. 2019, section 2.3).

        >>> GPT2.from_random(GPT2Config(n_layer=1, n_head=2, n_embd=8)).params.h[0].ln_1.weight[:2]
        array([1., 1.], dtype=float32)
        """
        float_ = numpy_float(dtype)
        generator = np.random.Generator(np.random.Philox(key=seed))
        tensors: dict[str, Array] = {}
        for name, shape in param_shapes(config).items():
            if len(shape) == 1:
                gain = name.endswith("weight")
                tensors[name] = (np.ones if gain else np.zeros)(shape, float_)
                continue
            std = config.initializer_range
            if name.endswith("c_proj.weight"):
                std /= (2 * config.n_layer) ** 0.5
            tensors[name] = (generator.standard_normal(shape) * std).astype(float_)
        return cls(config, build_tree(tensors))

    def save_pretrained(
        self, folder: str | Path, dtype: str | None = None, force: bool = False
    ) -> Path:
        """Write the model as a checkpoint folder that npgpt2 and transformers load.

        Args:
            dtype: of the weights: "float32", "float16", "bfloat16" or "float64"; None: the model's.
            force: replace a checkpoint that is there.

        Raises:
            FileError: the folder exists, is the model's own, or cannot be written.
            OptionError: an unknown dtype.
            MissingPackage: bfloat16 needs ml_dtypes.

        >>> import tempfile
        >>> folder = GPT2.from_pretrained("shakespeare").save_pretrained(
        ...     tempfile.mkdtemp() + "/half", dtype="float16"
        ... )
        >>> GPT2.from_pretrained(folder).generate("KING", max_new_tokens=2, temperature=0)[0].text
        ' RICHARD III'
        """
        return save_model(folder, self.config, self.params, self.folder, dtype, force)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.params.wte.weight.dtype

    def __repr__(self) -> str:
        name = f"{self._name}: " if self.folder else ""
        size = f"{self.num_parameters:,} parameters, {self.dtype}"
        return f"GPT2({name}{size}; {self._in_words()})"

    def _repr_html_(self) -> str:
        """In a notebook: the parameters as a table."""
        return notebook.parameters(repr(self), named_parameters(self.params))

    @property
    def num_parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        return sum(array.size for _, array in named_parameters(self.params))

    def __call__(
        self,
        input_ids: npt.ArrayLike | None = None,
        *,
        past_key_values: KVCache | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        position_ids: npt.ArrayLike | None = None,
        head_mask: npt.ArrayLike | None = None,
        inputs_embeds: npt.ArrayLike | None = None,
        encoder_hidden_states: npt.ArrayLike | None = None,
        encoder_attention_mask: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        logits_to_keep: int | npt.ArrayLike = 0,
        tap: Callable[[str, Array], None] | None = None,
    ) -> GPT2Output:
        """One forward pass. Arguments and shapes are those of transformers' GPT2LMHeadModel.

        Args:
            input_ids: (B, T) ids; or give inputs_embeds (B, T, C) instead.
            past_key_values: the KV cache of an earlier pass. It is extended in place and returned.
            attention_mask: (B, S), 1 for real tokens and 0 for padding, on either side.
            token_type_ids: (B, T) ids whose rows of wte are added to the embeddings.
            position_ids: (B, T) or (1, T). By default the position of a token is its index among
                the real tokens of its row.
            head_mask: (H,), (L, H) or (L, 1 or B, H, 1 or T, 1 or S); multiplies the attention
                probabilities.
            encoder_hidden_states: (B, E, C), for a model with cross-attention. Their keys and
                values and encoder_attention_mask (B, E) stay in the cache for later steps.
            labels: (B, T) ids, shifted inside the model; −100 is ignored.
            use_cache: by default the config's. False leaves a given cache unchanged.
            logits_to_keep: number of last positions (0 for all), or an array of positions.
            tap: callback for the name and array of every intermediate; see `forward.Tap`.

        Raises:
            InputError: an argument has a wrong shape, dtype or id; the message names it.

        >>> model = GPT2.from_pretrained("shakespeare")
        >>> first = model([[262]])
        >>> both = model([[497]], past_key_values=first.past_key_values)
        >>> bool(abs(both.logits[0, 0] - model([[262, 497]]).logits[0, 1]).max() < 1e-4)
        True
        """
        config = self.config
        tokens = arguments.tokens(input_ids, inputs_embeds, config, self.dtype)
        b, t = tokens.shape[:2]
        cache, past = arguments.cache(past_key_values, b, config, self.dtype)
        keep = config.use_cache if use_cache is None else use_cache
        if cache is None and keep:
            cache = KVCache(config, b, capacity=max(t, 64), dtype=self.dtype)
        mask = arguments.mask("attention_mask", attention_mask, (b, past + t))
        positions = arguments.positions(position_ids, mask, past, (b, t), config)
        types = None
        if token_type_ids is not None:
            types = arguments.ids("token_type_ids", token_type_ids, (b, t), config.vocab_size)
        encoder, encoder_mask = arguments.encoder(
            encoder_hidden_states, encoder_attention_mask, b, config, self.dtype, cache
        )
        wanted = self._wanted(output_hidden_states, output_attentions)
        taken: dict[str, Array] = {}

        def listen(name: str, array: Array) -> None:
            if name in wanted:
                taken[name] = array.copy()  # the model changes it in place
            if tap is not None:
                tap(name, array)

        show = Tap(listen if wanted or tap is not None else None)
        every = wanted or labels is not None or tap is not None or head_mask is not None
        last = 0 if every else arguments.last_few(logits_to_keep) or 0
        run = Run(
            config,
            dict(cache.cross) if cache is not None and encoder is None else {},
            cache,
            mask,
            arguments.head_mask(head_mask, (b, t, past + t), config, self.dtype),
            encoder,
            encoder_mask,
            want_probs=output_attentions or tap is not None,
            last=last,
        )
        x = embed(self.params, tokens, positions, types, show)
        x = transformer(x, self.params, run, show)
        logits = lm_head(arguments.last(x, logits_to_keep), self.params, show)
        loss = None if labels is None else self._loss(x, logits, logits_to_keep, labels)
        if cache is not None and keep:  # last, so that a pass that fails leaves the cache unchanged
            cache.advance(t)
            cache.cross, cache.cross_mask = run.cross, encoder_mask

        def tuple_of(kind: str) -> tuple[Array, ...] | None:
            found = tuple(taken[name] for name, k in wanted.items() if k == kind and name in taken)
            return found or None

        return GPT2Output(
            loss=loss,
            logits=logits,
            past_key_values=cache if keep else None,
            hidden_states=tuple_of("hidden"),
            attentions=tuple_of("attn"),
            cross_attentions=tuple_of("cross"),
            last_hidden_state=x,
        )

    # ── implementation of LanguageModel ──────────────────────────────────────────────────────────

    def logits(self, ids: Array) -> Array:
        return self(ids, use_cache=False).logits

    def stepper(
        self, mask: Array | None = None, use_cache: bool = True, room: int = 64
    ) -> NumpyStepper:
        return NumpyStepper(self, mask, use_cache, room)

    def slots(self, count: int) -> NumpySlots:
        return NumpySlots(self, count)

    def hidden(self, ids: Array) -> Array:
        x = embed(self.params, ids, np.arange(ids.shape[1])[None])
        return transformer(x, self.params, Run(self.config, {}))

    # ── changes of the model, in place as in transformers; each returns the model ────────────────

    def prune_heads(self, heads: Mapping[int, Sequence[int]]) -> GPT2:
        """Remove attention heads: `{layer: [heads]}`, numbered as in the unpruned model.

        Changes this model and returns it. The outputs are those of the unpruned model with a
        `head_mask` of 0 for these heads.

        Raises:
            ConfigError: a layer or head does not exist, or all heads of a layer are named.

        >>> model = GPT2.from_pretrained("shakespeare").prune_heads({0: [1, 2]})
        >>> model.params.h[0].attn.c_attn.weight.shape
        (256, 576)
        """
        before = self.config.pruned_heads
        try:
            union = {i: (*before.get(i, ()), *heads.get(i, ())) for i in {*before, *heads}}
        except (AttributeError, TypeError):
            raise ConfigError(f"heads: got {heads!r}, expected {{layer: [heads]}}") from None
        config = replace(self.config, pruned_heads=union)  # validates
        d, blocks = config.head_dim, list(self.params.h)
        for layer, gone in config.pruned_heads.items():
            if before.get(layer) == gone:
                continue
            here = [h for h in range(config.n_head) if h not in before.get(layer, ())]
            left = [n for n, h in enumerate(here) if h not in gone]
            attn = blocks[layer].attn
            w = attn.c_attn.weight.reshape(config.n_embd, 3, -1, d)[:, :, left]
            bias = attn.c_attn.bias.reshape(3, -1, d)[:, left].reshape(-1)
            out = attn.c_proj.weight.reshape(-1, d, config.n_embd)[left]
            blocks[layer] = blocks[layer]._replace(
                attn=attn._replace(
                    c_attn=Linear(np.ascontiguousarray(w.reshape(config.n_embd, -1)), bias),
                    c_proj=Linear(out.reshape(-1, config.n_embd), attn.c_proj.bias),
                )
            )
        self.config, self.params = config, self.params._replace(h=tuple(blocks))
        return self

    def get_input_embeddings(self) -> Array:
        """The token embeddings wte, (V, C)."""
        return self.params.wte.weight

    def set_input_embeddings(self, weight: npt.ArrayLike) -> GPT2:
        """Replace wte by `weight` (V, C); with a tied head V may differ.

        Raises:
            InputError: another width; or another V with a head that is not tied.
        """
        wte = arguments.array("weight", weight, self.dtype)
        if wte.ndim != 2 or wte.shape[1] != self.config.n_embd or not len(wte):
            raise InputError(f"weight: got shape {wte.shape}, expected (V, {self.config.n_embd})")
        if self.params.lm_head is not None and len(wte) != self.config.vocab_size:
            raise InputError(
                f"weight: got {len(wte)} rows, expected {self.config.vocab_size} as in lm_head, "
                "which is not tied. Use resize_token_embeddings"
            )
        self.params = self.params._replace(wte=Embedding(wte))
        self.config = replace(self.config, vocab_size=len(wte))
        return self

    def resize_token_embeddings(self, size: int) -> GPT2:
        """Change the vocabulary to `size` tokens: cut rows off, or add rows, at the end.

        A new row is the mean of the old rows (Hewitt 2021,
        https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

        >>> GPT2.from_pretrained("shakespeare").resize_token_embeddings(2050).config.vocab_size
        2050
        """

        def resized(node: Embedding) -> Embedding:
            rows = node.weight[:size]
            mean = node.weight.mean(0, keepdims=True)
            return Embedding(np.concatenate([rows, np.repeat(mean, size - len(rows), 0)]))

        self.config = replace(self.config, vocab_size=size)  # validates
        head = self.params.lm_head
        self.params = self.params._replace(
            wte=resized(self.params.wte), lm_head=None if head is None else resized(head)
        )
        return self

    # ── pictures ─────────────────────────────────────────────────────────────────────────────────

    def explain(self, prompt: str, **options: Any) -> Page:
        """An HTML page that shows each step of a prompt through the model, and a continuation.

        Args:
            options: of `GenerationOptions`; by default 20 new tokens with seed 0.

        Raises:
            InputError: the prompt has more than 256 tokens; see also `encode`.
            TokenizerError: the model has no vocabulary.
            OptionError: an unknown option, or one for several texts.

        >>> page = GPT2.from_pretrained("shakespeare").explain("the king", temperature=0)
        >>> page.startswith("<!doctype html>")  # page.save("page.html") writes it
        True
        """
        from npgpt2.pictures.explain import explain_page
        from npgpt2.pictures.record import record

        for name in ("num_beams", "num_samples"):
            if name in options:
                raise OptionError(name, "does not apply: the page shows one text. Leave it out")
        chosen = GenerationOptions.of(EXPLAINED | options)
        return explain_page(record(self, prompt, chosen, self._name))

    def plot_weights(self, path: str | Path) -> Path:
        """Write a PNG that shows how the values of each tensor are distributed; return its path.

        Raises:
            MissingPackage: matplotlib is not installed.
            FileError: the file cannot be written.
        """
        from npgpt2.pictures.weights import draw_all, spread

        found = [spread(name, array) for name, array in named_parameters(self.params)]
        draw_all(found, self._name, Path(path))
        return Path(path)

    # ── outputs ──────────────────────────────────────────────────────────────────────────────────

    def _wanted(self, hidden: bool, attentions: bool) -> dict[str, str]:
        """Tap names of the requested outputs, in order, each with the name of its tuple."""
        layers = range(self.config.n_layer)
        names: dict[str, str] = {}
        if hidden:
            between = [f"h.{i}.resid_mlp" for i in layers[:-1]]
            names |= dict.fromkeys(["embed", *between, "ln_f"], "hidden")
        if attentions:
            names |= dict.fromkeys((f"h.{i}.attn.probs" for i in layers), "attn")
            names |= dict.fromkeys((f"h.{i}.crossattention.probs" for i in layers), "cross")
        return names

    def _loss(self, x: Array, logits: Array, kept: Any, labels: Any) -> Any:
        """Mean cross-entropy of each token given those before it, as in GPT2LMHeadModel."""
        vocabulary = self.config.vocab_size
        targets = arguments.ids("labels", labels, x.shape[:2], vocabulary, ignore=-100)[:, 1:]
        whole = isinstance(kept, int) and kept == 0
        logits = logits[:, :-1] if whole else lm_head(x[:, :-1], self.params)
        nats = cross_entropy(logits, targets).sum()
        count = int((targets != -100).sum())
        return nats / count if count else nats.dtype.type(np.nan)


def numpy_float(name: str) -> Any:
    """NumPy's type for "float32" or "float64"; raises OptionError for anything else."""
    if name not in FLOATS:
        raise OptionError("dtype", f"got {name!r}, expected 'float32' or 'float64'")
    return FLOATS[name]


class NumpyStepper:
    """`npgpt2.generation.generate.Rewindable` over a GPT2."""

    def __init__(self, model: GPT2, mask: Array | None, use_cache: bool, room: int) -> None:
        self._model, self._mask, self._use_cache, self._room = model, mask, use_cache, room
        self._cache: KVCache | None = None
        self._ids: Array | None = None  # all ids so far, if there is no cache

    def __call__(self, ids: Array, every: bool = False) -> Array:
        new = ids.shape[1]
        started = self._cache is not None or self._ids is not None
        if self._mask is not None and started:
            self._mask = np.concatenate([self._mask, np.ones(ids.shape, bool)], 1)
        if self._use_cache and not started:
            capacity = max(self._room, new)
            self._cache = KVCache(self._model.config, len(ids), capacity, self._model.dtype)
        if not self._use_cache:
            ids = ids if self._ids is None else np.concatenate([self._ids, ids], 1)
            self._ids = ids
        out = self._model(
            ids,
            past_key_values=self._cache,
            attention_mask=self._mask,
            use_cache=self._use_cache,
            logits_to_keep=new if every else 1,
        )
        self._cache = out.past_key_values
        return out.logits if every else out.logits[:, -1]

    def rewind(self, tokens: int) -> None:
        if self._cache is not None:
            self._cache.rewind(self._cache.length - tokens)
        end = -tokens or None
        self._ids = None if self._ids is None else self._ids[:, :end]
        self._mask = None if self._mask is None else self._mask[:, :end]

    def reorder(self, rows: Array) -> None:
        if self._cache is not None:
            self._cache.reorder(rows)
        self._ids = None if self._ids is None else self._ids[rows]
        self._mask = None if self._mask is None else self._mask[rows]


class NumpySlots(Slots):
    """`npgpt2.generation.slots.Slots` over a GPT2.

    Every step computes all slots: BLAS sums in a different order for one, four and eight rows.
    """

    def __init__(self, model: GPT2, count: int) -> None:
        self._model = model
        super().__init__(model.config, count, model.dtype)

    def padded(self, rows: int) -> int:
        return self.count

    def _prefill(self, slot: int, ids: Array, every: bool) -> Array:
        cache = self._cache.rows(slot, slot + 1)
        cache.length = int(self.lengths[slot])
        keep = ids.shape[1] if every else 1
        return self._model(ids, past_key_values=cache, logits_to_keep=keep).logits

    def _step(self, ids: Array) -> Array:
        cache = RaggedCache.over(self._cache, self.lengths)
        positions = self.lengths[:, None]
        return self._model(ids, past_key_values=cache, position_ids=positions).logits
