"""GPT-2 on ONNX Runtime, with the same methods as the NumPy model.

Axes: B batch, T new tokens, P past, S = P + T, H heads, D head_dim, V vocabulary.
"""

from __future__ import annotations  # so that `help` shows ArrayLike, not what it stands for

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from npgpt2.base.arrays import Array
from npgpt2.base.errors import ConfigError, InputError, OptionError
from npgpt2.generation.generate import Rewindable
from npgpt2.generation.language_model import LanguageModel
from npgpt2.generation.slots import Slots
from npgpt2.heads import HeadModel, HeadOutput, checked
from npgpt2.model.cache import KVCache
from npgpt2.model.config import HEADS
from npgpt2.tokenizer.load import vocabulary_of
from npgpt2_onnx.graph import names
from npgpt2_onnx.run.session import Session, choose

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own is younger than Python 3.10

# Tokens per piece of a prompt with batch size 1: no work on masked tokens, and intermediate arrays
# stay in the processor's cache. Prefill of 1,024 tokens is 1.05 × as fast in int8 and int4.
PIECE = 256


class _Opened:
    """An opened exported folder."""

    heads: tuple[str, ...]
    instead: str
    _in_words: Callable[[], str]

    def __init__(self, session: Session, folder: Path | None = None) -> None:
        self.session, self.folder, self.config = session, folder, session.config
        self._vocabulary = vocabulary_of(folder)
        if self.config.head not in self.heads:
            kind = self.config.architectures[0]
            kind = "language model" if self.config.head == "lm_head" else kind
            raise ConfigError(f"{session.path}: got a {kind}, expected {self.instead}")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        precision: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Open the graph of a folder that is fastest on a device.

        Args:
            folder: a folder that `npgpt2 export` wrote.
            precision: "fp32", "fp16", "int8" or "int4"; None: the first of these in the folder.
            device: "cpu" or "cuda".
            threads: per operator; None: one for each core.
            cache_dir: folder for the optimized graph, which the next session opens faster.

        Raises:
            FileError, CheckpointError, MissingPackage, OptionError: see `Session` and `choose`.
            ConfigError: the model has another kind of head.
        """
        _, _, path = choose(Path(folder), device, precision)
        session = Session(path, device, threads, None if cache_dir is None else Path(cache_dir))
        return cls(session, Path(folder))

    def __repr__(self) -> str:
        s = self.session
        name = type(self).__name__
        return f"{name}({s.path.name}, {s.precision.name}, {s.provider}; {self._in_words()})"


class OnnxWithHead(_Opened, HeadModel):
    """An exported folder with a classification, question answering or multiple choice head: see
    `npgpt2.heads.HeadModel`."""

    heads = tuple(HEADS.values())
    instead = f"one of {', '.join(HEADS)}. 'npgpt2 generate' runs it, in Python OnnxModel"

    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        attention_mask: npt.ArrayLike | None = None,
        mc_token_ids: npt.ArrayLike | None = None,
    ) -> HeadOutput:
        ids, mask, at = checked(self.config, input_ids, attention_mask, mc_token_ids)
        mask = np.ones(ids.shape, np.int64) if mask is None else mask.astype(np.int64)
        feeds = {names.INPUT_IDS: ids, names.ATTENTION_MASK: mask}
        if at is not None:
            feeds[names.MC_TOKEN_IDS] = at
        return HeadOutput(self.session.outputs(feeds))


class OnnxModel(_Opened, LanguageModel):
    """An exported language model with GPT2's methods `generate`, `stream`, `score`, `stepper`.

    >>> import tempfile
    >>> from npgpt2_onnx import export
    >>> folder = export("shakespeare", tempfile.mkdtemp() + "/shakespeare")
    >>> model = OnnxModel.from_pretrained(folder)
    >>> model.generate("O Romeo,", max_new_tokens=4, temperature=0)[0].text
    '\\nAnd Romeo,'
    >>> model.session.kind, model.session.provider
    ('gqa', 'CPUExecutionProvider')
    """

    heads = ("lm_head",)
    instead = "a language model. 'npgpt2 classify' runs it, in Python OnnxWithHead"

    def logits(self, ids: Array) -> Array:
        self._require_no_encoder()
        return self.session.run([names.LOGITS], self.session.feeds(ids))[0]

    def hidden(self, ids: Array) -> Array:
        self._require_no_encoder()
        states = self._headless.run([names.LAST_HIDDEN], self._headless.feeds(ids))[0]
        return states.astype(np.float32, copy=False)

    @cached_property
    def _headless(self) -> Session:
        """A session that ends before the head, opened on first use; it loads the weights again."""
        return self.session.until(names.LAST_HIDDEN)

    def stepper(
        self, mask: Array | None = None, use_cache: bool = True, room: int = 64
    ) -> Rewindable:
        self._require_no_encoder()
        if not use_cache:
            return WholeStepper(self.session, mask)
        return fresh_stepper(self.session, mask, room)

    def slots(self, count: int) -> OnnxSlots:
        self._require_no_encoder()
        return OnnxSlots(self.session, count)

    def _require_no_encoder(self) -> None:
        if self.config.add_cross_attention:
            raise InputError(
                "encoder: this graph attends to an encoder's keys and values, which generation and "
                "scoring do not have. Pass them to session.forward(ids, cross=…)"
            )


def fresh_stepper(session: Session, mask: Array | None, room: int) -> Rewindable:
    """Return the stepper for the graph's kind of KV cache."""
    if session.kind == "gqa":
        return InPlaceStepper(session, mask, room)
    return ConcatStepper(session, mask)


class InPlaceStepper:
    """Stepper for GroupQueryAttention, which writes new keys and values into the KV cache in place.

    The operator needs padding on the right, so the stepper moves a batch's padding there. It is not
    part of the cache, and each row counts its own tokens.
    """

    def __init__(self, session: Session, mask: Array | None, room: int) -> None:
        self._session, self._mask, self._room = session, mask, room
        self._lengths: Array | None = None  # (B,), real tokens per row, if they differ
        self._cache: KVCache | None = None
        self._device: list[ort.OrtValue] = []  # the cache's keys and values as bound
        self._binding: Any = None

    def __call__(self, ids: Array, every: bool = False) -> Array:
        if self._cache is None:
            logits = self._prompt(ids, every)
        elif len(ids) == 1:
            logits = self._step(ids, every)
        else:  # with a past, the operator takes several tokens only for one row
            steps = [self._step(ids[:, t : t + 1]) for t in range(ids.shape[1])]
            logits = np.concatenate(steps, 1)
        return logits if every else logits[:, -1]

    def _prompt(self, ids: Array, every: bool) -> Array:
        b, t = ids.shape
        self._cache = KVCache(self._session.config, b, max(self._room, t), self._session.dtype)
        self._bind()
        if self._mask is None:
            piece = PIECE if b == 1 and self._session.device == "cpu" else t
            pieces = [self._step(ids[:, i : i + piece], every) for i in range(0, t, piece)]
            return np.concatenate(pieces, 1) if every else pieces[-1]
        self._lengths = self._mask.sum(1)
        real_first = np.argsort(~self._mask, axis=1, kind="stable")
        ids = np.take_along_axis(ids, real_first, 1)
        mask = (np.arange(t) < self._lengths[:, None]).astype(np.int64)
        positions = np.broadcast_to(np.arange(t), (b, t))
        logits = self._run(ids, mask, positions, t, every)
        if every:  # in the order of the input
            logits = np.take_along_axis(logits, real_first.argsort(1)[..., None], 1)
        return logits

    def _step(self, ids: Array, every: bool = False) -> Array:
        assert self._cache is not None
        b, t = ids.shape
        if self._lengths is None:
            past = self._cache.length
            positions = np.arange(past, past + t)[None].repeat(b, 0)
            mask = np.ones((b, past + t), np.int64)
        else:
            past = int(self._lengths.max())
            positions = self._lengths[:, None] + np.arange(t)
            # As many ones as the row has tokens; the new ones are last.
            mask = (np.arange(past + t) < self._lengths[:, None]).astype(np.int64)
            mask[:, past:] = 1
            self._lengths = self._lengths + t
        return self._run(ids, mask, positions, past + t, every)

    def _run(self, ids: Array, mask: Array, positions: Array, total: int, every: bool) -> Array:
        assert self._cache is not None
        if total > self._cache.capacity:
            self._pull()
            self._cache.reserve(total)
            self._bind()
        logits = self._session.run_bound(self._binding, ids, mask, positions, every)
        self._cache.length = total
        return logits

    def _bind(self) -> None:
        assert self._cache is not None
        self._binding, self._device = bound(self._session, self._cache)

    def _pull(self) -> None:
        """Copy the cache back from the device. On the CPU there is nothing to copy."""
        if self._session.device == "cpu" or self._cache is None:
            return
        arrays = [a for i in range(len(self._cache)) for a in self._cache.room(i)]
        for array, value in zip(arrays, self._device, strict=True):
            array[...] = value.numpy()

    def rewind(self, tokens: int) -> None:
        assert self._cache is not None
        self._lengths = None if self._lengths is None else self._lengths - tokens
        self._cache.rewind(self._cache.length - tokens)

    def reorder(self, rows: Array) -> None:
        assert self._cache is not None
        self._pull()
        self._cache.reorder(rows)
        self._lengths = None if self._lengths is None else self._lengths[rows]
        self._bind()


def bound(session: Session, cache: KVCache) -> tuple[Any, list[ort.OrtValue]]:
    """Bind every layer's buffers as both past and present, so that they share memory.

    Returns:
        the binding, and the buffers on the device.
    """
    binding, values = session.ort.io_binding(), []
    for i in range(len(cache)):
        for past, present, array in zip(
            names.past(i), names.present(i), cache.room(i), strict=True
        ):
            value = ort.OrtValue.ortvalue_from_numpy(array, session.device, 0)
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
            values.append(value)
    return binding, values


class OnnxSlots(Slots):
    """`npgpt2.generation.slots.Slots` on GroupQueryAttention, on the CPU.

    ONNX Runtime's float32 products give a row the same bits for any number of rows. Quantized ones
    process rows in pairs, and an odd last row in another way.
    """

    def __init__(self, session: Session, count: int) -> None:
        if session.device != "cpu":
            raise OptionError("device", f"got {session.device!r}, expected 'cpu' for slots")
        if session.kind != "gqa":
            raise ConfigError(
                f"{session.path}: is a {session.kind} graph, slots need one with "
                "GroupQueryAttention (model_gqa.onnx). Export with --graph all"
            )
        super().__init__(session.config, count + count % 2, session.dtype)
        self.count, self._session = count, session
        held = range(len(self.lengths))
        self._one = [bound(session, self._cache.rows(i, i + 1))[0] for i in held]
        self._first = [bound(session, self._cache.rows(0, i + 1))[0] for i in held]

    def padded(self, rows: int) -> int:
        return rows + rows % 2 if self._session.precision.bits else rows

    def _prefill(self, slot: int, ids: Array, every: bool) -> Array:
        past, total = int(self.lengths[slot]), int(self.lengths[slot]) + ids.shape[1]
        positions, mask = np.arange(past, total)[None], np.ones((1, total), np.int64)
        return self._session.run_bound(self._one[slot], ids, mask, positions, every)

    def _step(self, ids: Array) -> Array:
        positions = self.lengths[: len(ids), None].clip(1)  # an empty past would be a prompt
        # As many ones as the row has tokens, the new one last: the operator counts them.
        past = int(positions.max())
        mask = (np.arange(past + 1) < positions).astype(np.int64)
        mask[:, past] = 1
        return self._session.run_bound(self._first[len(ids) - 1], ids, mask, positions)


class ConcatStepper:
    """Stepper for a graph with new arrays as presents: they stay on the device as the next past."""

    def __init__(self, session: Session, mask: Array | None) -> None:
        self._session, self._mask = session, mask
        self._past: list[ort.OrtValue] = []  # key and value by layer

    def __call__(self, ids: Array, every: bool = False) -> Array:
        session, b = self._session, len(ids)
        started = bool(self._past)
        if not started:
            empty = [array for pair in session.empty_past(b) for array in pair]
            self._past = [self._value(array) for array in empty]
            self._mask = np.ones(ids.shape, bool) if self._mask is None else self._mask
        else:
            assert self._mask is not None
            self._mask = np.concatenate([self._mask, np.ones(ids.shape, bool)], 1)
        positions = (np.cumsum(self._mask, 1) - 1).clip(0)[:, -ids.shape[1] :]
        binding = session.ort.io_binding()
        layers = range(session.config.n_layer)
        for i, (past, present) in enumerate(
            pair for n in layers for pair in zip(names.past(n), names.present(n), strict=True)
        ):
            binding.bind_ortvalue_input(past, self._past[i])
            binding.bind_output(present, session.device)
        logits = session.run_bound(binding, ids, self._mask, positions, every)
        *self._past, _ = binding.get_outputs()
        return logits if every else logits[:, -1]

    def _value(self, array: Array) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(array, self._session.device, 0)

    def rewind(self, tokens: int) -> None:
        assert self._mask is not None
        if tokens:
            self._past = [self._value(np.ascontiguousarray(value.numpy()[:, :, :-tokens]))
                          for value in self._past]  # fmt: skip
            self._mask = self._mask[:, :-tokens]

    def reorder(self, rows: Array) -> None:
        self._past = [self._value(value.numpy()[rows]) for value in self._past]
        self._mask = None if self._mask is None else self._mask[rows]


class WholeStepper:
    """Stepper without a KV cache: runs the whole text again for every token."""

    def __init__(self, session: Session, mask: Array | None) -> None:
        self._session, self._mask = session, mask
        self._ids: Array | None = None

    def __call__(self, ids: Array, every: bool = False) -> Array:
        new = ids.shape[1]
        if self._ids is not None:
            ids = np.concatenate([self._ids, ids], 1)
            if self._mask is not None:
                more = np.ones((len(ids), ids.shape[1] - self._mask.shape[1]), bool)
                self._mask = np.concatenate([self._mask, more], 1)
        self._ids = ids
        logits = fresh_stepper(self._session, self._mask, ids.shape[1])(ids, every)
        return logits[:, -new:] if every else logits

    def rewind(self, tokens: int) -> None:
        assert self._ids is not None
        self._ids = self._ids[:, : self._ids.shape[1] - tokens]
        self._mask = None if self._mask is None else self._mask[:, : self._ids.shape[1]]

    def reorder(self, rows: Array) -> None:
        self._ids = None if self._ids is None else self._ids[rows]
        self._mask = None if self._mask is None else self._mask[rows]
