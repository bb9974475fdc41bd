"""Check the arguments of a forward pass and bring them into one form.

Axes: B batch, T new tokens, S past and new, C n_embd, H heads, L layers, V vocabulary, N positions.
"""

from typing import Any

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import InputError
from npgpt2.model.cache import KVCache
from npgpt2.model.config import GPT2Config


def tokens(input_ids: Any, inputs_embeds: Any, config: GPT2Config, dtype: np.dtype[Any]) -> Array:
    """Ids (B, T) or embeddings (B, T, C), whichever is given; exactly one must be."""
    if input_ids is not None and inputs_embeds is not None:
        raise InputError("input_ids, inputs_embeds: cannot specify both. Give one of the two")
    if input_ids is not None:
        return ids("input_ids", input_ids, None, config.vocab_size)
    if inputs_embeds is None:
        raise InputError("input_ids, inputs_embeds: specify one of the two")
    return states("inputs_embeds", inputs_embeds, config, dtype)


def ids(
    name: str, value: Any, shape: tuple[int, ...] | None, below: int, ignore: int | None = None
) -> Array:
    """Integers with 0 ≤ id < `below` and this shape; a shape of None means any (B, T)."""
    x = array(name, value)
    if x.dtype.kind == "U":
        raise InputError(f"{name}: got text, expected ids. Encode it first: [model.encode(text)]")
    if x.dtype.kind not in "iu" and x.size:
        raise InputError(f"{name}: got dtype {x.dtype}, expected integers")
    if x.shape != shape if shape else x.ndim != 2 or not x.size:
        hint = ". For one text pass [ids]" if not shape and x.ndim == 1 and x.size else ""
        raise InputError(f"{name}: got shape {x.shape}, expected {shape or '(B, T)'}{hint}")
    bad = (x < 0) | (x >= below)
    if ignore is not None:
        bad &= x != ignore
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"{name}: got {x[where]} at {where}, expected 0 to {below - 1}")
    return x.astype(np.int64, copy=False)


def states(name: str, value: Any, config: GPT2Config, dtype: np.dtype[Any]) -> Array:
    """Embeddings or hidden states (B, any, C)."""
    x = array(name, value, dtype)
    if x.ndim != 3 or x.shape[2] != config.n_embd or 0 in x.shape:
        raise InputError(f"{name}: got shape {x.shape}, expected (B, T, {config.n_embd})")
    return x


def array(name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as a NumPy array."""
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError):
        raise InputError(
            f"{name}: not numbers, or rows of different lengths. Pad the rows, and pass a mask"
        ) from None


def cache(
    given: Any, rows: int, config: GPT2Config, dtype: np.dtype[Any]
) -> tuple[KVCache | None, int]:
    """The KV cache of an earlier pass, and its number of tokens."""
    if given is None:
        return None, 0
    if not isinstance(given, KVCache):
        raise InputError(
            f"past_key_values: got a {type(given).__name__}, "
            "expected the past_key_values of an earlier output"
        )
    if given.batch_size != rows:
        raise InputError(f"past_key_values: has {given.batch_size} rows, but the input has {rows}")
    if not given.fits(config, dtype):
        raise InputError(f"past_key_values: {given} was made for another model")
    return given, given.length


def mask(name: str, value: Any, shape: tuple[int, ...]) -> Array | None:
    """A padding mask as bool; None where nothing is padding."""
    if value is None:
        return None
    x = array(name, value)
    if x.shape != shape:
        raise InputError(f"{name}: got shape {x.shape}, expected {shape}")
    if not ((x == 0) | (x == 1)).all():
        raise InputError(f"{name}: got other values, expected 1 for real tokens, 0 for padding")
    return None if x.all() else x.astype(bool)


def positions(
    given: Any, mask: Array | None, past: int, shape: tuple[int, int], config: GPT2Config
) -> Array:
    """The position of each token, (B, T) or (1, T).

    By default it is the index among the real tokens, which is not the column if padding is on the
    left. (transformers' forward uses the column unless its caller passes position_ids.)
    """
    b, t = shape
    if given is not None:
        given = array("position_ids", given)
        wide = (b if given.shape[:1] == (b,) else 1, t)
        return ids("position_ids", given, wide, config.n_positions)
    if mask is None:
        x = np.arange(past, past + t)[None]
    else:
        x = (np.cumsum(mask, 1) - 1).clip(0)[:, past:]
    if x.max() >= config.n_positions:
        raise InputError(
            f"input_ids: are longer than the context: "
            f"{x.max() + 1:,} > {config.n_positions:,} tokens"
        )
    return x


def head_mask(
    given: Any, sizes: tuple[int, int, int], config: GPT2Config, dtype: np.dtype[Any]
) -> Array | None:
    """(H,), (L, H) or (L, B, H, T, S) → (L, B, H, T, S), or sizes of 1 in place of B, T, S."""
    if given is None:
        return None
    x, layers, heads = array("head_mask", given, dtype), config.n_layer, config.n_head
    if config.pruned_heads:
        raise InputError("head_mask: does not work with a pruned model. Leave it out")
    if x.ndim in (1, 2) and x.shape[-1] == heads and x.shape[:-1] in ((), (layers,)):
        x = np.broadcast_to(x, (layers, heads))[:, None, :, None, None]
    b, t, s = sizes
    allowed = ((layers,), (1, b), (1, heads), (1, t), (1, s))
    if x.ndim != 5 or any(n not in a for n, a in zip(x.shape, allowed, strict=True)):
        raise InputError(
            f"head_mask: got shape {x.shape}, expected ({heads},), "
            f"({layers}, {heads}) or ({layers}, B, {heads}, T, S)"
        )
    return x


def encoder(
    given: Any,
    given_mask: Any,
    rows: int,
    config: GPT2Config,
    dtype: np.dtype[Any],
    cache: KVCache | None,
) -> tuple[Array | None, Array | None]:
    """The encoder's hidden states (B, E, C) and mask (B, E); without them, the cache's mask."""
    if given is None:
        known = next(iter(cache.cross.values()))[0] if cache is not None and cache.cross else None
        if given_mask is None:
            return None, cache.cross_mask if cache is not None else None
        if known is None:
            raise InputError("encoder_attention_mask: is given without encoder_hidden_states")
        return None, mask("encoder_attention_mask", given_mask, (rows, known.shape[2]))
    if not config.add_cross_attention:
        raise InputError(
            "encoder_hidden_states: this model has no cross-attention "
            "(config.add_cross_attention is false)"
        )
    x = states("encoder_hidden_states", given, config, dtype)
    if len(x) != rows:
        raise InputError(f"encoder_hidden_states: got {len(x)} rows, expected {rows}")
    return x, mask("encoder_attention_mask", given_mask, x.shape[:2])


def last_few(keep: Any) -> int | None:
    """The number of last positions to keep, 0 for all; None if `keep` is not such a number."""
    whole = isinstance(keep, (int, np.integer)) and not isinstance(keep, bool) and keep >= 0
    return int(keep) if whole else None


def last(x: Array, keep: Any) -> Array:
    """The last `keep` positions of x (B, T, C), all if 0; or the positions in an array `keep`."""
    few = last_few(keep)
    if few is not None:
        return x[:, -few:]
    t, index = x.shape[1], array("logits_to_keep", keep)
    if index.dtype.kind not in "iu" or index.ndim != 1 or ((index < -t) | (index >= t)).any():
        raise InputError(
            f"logits_to_keep: got {keep!r}, expected an integer from 0, or positions below {t}"
        )
    return x[:, index]
