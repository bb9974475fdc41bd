"""Write the golden references of a model, computed in float32 and in float64."""

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npgpt2 import __version__
from npgpt2.base.arrays import Array
from npgpt2.base.blas import describe, simd
from npgpt2.base.errors import ConfigError, FileError, GoldenError, InputError, OptionError
from npgpt2.base.files import Progress, new_folder
from npgpt2.generation.options import GenerationOptions
from npgpt2.golden import cases
from npgpt2.golden.cases import CASES, Subject
from npgpt2.golden.fingerprints import fingerprints, mistakes_of
from npgpt2.golden.folder import FINGERPRINTS, SCHEMA, Golden, save_golden
from npgpt2.golden.mistakes import FORMULA
from npgpt2.golden.reference import FACTOR, SLICE, Piece, Reference, reference
from npgpt2.gpt2 import GPT2
from npgpt2.model.config import GPT2Config
from npgpt2.model.params import build_tree, named_parameters

GIVEN = 4096  # largest input that is always kept whole; only the tokenizer's long text is larger
SMALL = 1_000_000  # most parameters of a model whose tensors are kept whole by default


def conventions(config: GPT2Config) -> dict[str, str]:
    """The meaning of the values, in words."""
    divided = " / (layer + 1)" if config.scale_attn_by_inverse_layer_idx else ""
    scale = ("/√D" if config.scale_attn_weights else "") + divided
    tied = config.tie_word_embeddings
    return {
        "tensors": "row-major (C order). Raw files are little-endian",
        "linear": "y = x · W + b, W (in, out) as in GPT-2's checkpoints",
        "layer_norm": "(x − mean) / √(variance + eps) · weight + bias; the sum of squares is "
        f"divided by n; eps is {config.layer_norm_epsilon:g}",
        "block": "pre-LN: x + attn(ln_1(x)), then x + mlp(ln_2(x)); ln_f after the last block",
        "attention": f"c_attn gives q, k, v in this order, each (H, D); scores q·k{scale}; query i "
        "of T attends to key j of S if j − i ≤ S − T; softmax over the keys",
        "activation": config.activation_function
        + (f": {FORMULA}" if config.activation_function == "gelu_new" else ""),
        "head": f"logits = ln_f · {'wte' if tied else 'lm_head'}ᵀ, without a bias",
        "positions": "from 0; in a padded row, the index among the real tokens",
        "padding": "the values of padding tokens are not compared",
        "loss": "mean of −log softmax(logits)[target], in nats; the target is the next token",
        "adamw": "decoupled weight decay, on matrices only; bias-corrected moments; eps outside "
        "the square root",
        "sampling": "temperature, top-k, top-p (the token that crosses p is kept), min-p, in "
        "float64; then the first id at which the cumulative sum of probabilities, by id, exceeds "
        "the uniform random value",
        "tolerance": f"|port − float64| ≤ atol + rtol·|float64|; atol is {FACTOR:g} × the noise: "
        "the largest |float32 − float64| beyond the rounding of each value, as a power of two. "
        "When comparing with the float32 values instead, allow a sixteenth more",
        "slices": f"where stride > 1, {SLICE} values are kept: element k is element k·stride of "
        "the flattened tensor; mean and rms are those of the whole tensor",
    }


def write(
    out: str | Path,
    model: GPT2,
    *,
    only: Sequence[str] = (),
    full: bool | None = None,
    force: bool = False,
    progress: Progress = lambda names, what: names,
) -> Path:
    """Write a golden folder.

    Args:
        out: the folder to create.
        model: a model in float32; every case is also computed in float64.
        only: names of the cases, from `CASES`; default: all.
        full: True keeps tensors whole, False keeps slices; default: whole for a model of up to a
            million parameters.
        force: replace an existing golden folder.
        progress: wraps the loops over cases.

    Returns:
        The folder.

    Raises:
        InputError: the model is not in float32.
        ConfigError: its context or vocabulary is smaller than the cases need.
        GoldenError: the model computes NaN, or there is nothing to write.
        OptionError: a case does not exist.
        FileError: the folder exists, or cannot be written.
    """
    require_single(model)
    for field, least in (("n_positions", cases.TOKENS), ("vocab_size", 2)):
        if (found := getattr(model.config, field)) < least:
            raise ConfigError(f"{field}: got {found}, golden references need {least} or more")
    for name in only:
        if name not in CASES:
            raise OptionError("cases", f"got {name!r}, expected some of {', '.join(CASES)}")
    whole = model.num_parameters <= SMALL if full is None else full
    chosen = [name for name in CASES if name in only or not only]

    def replaces(folder: Path) -> bool:
        if not (folder / FINGERPRINTS).exists():
            raise FileError(f"{folder}: exists and is not a golden folder, expected a new folder")
        return force

    with new_folder(Path(out), replaces) as f:
        save_golden(f, compute(model, chosen, whole, progress))
    return Path(out)


def compute(model: GPT2, chosen: Sequence[str], whole: bool, progress: Progress) -> Golden:
    single, double = Subject(model), Subject(in_double(model))
    references: dict[str, Reference] = {}
    for case in progress(chosen, "cases"):
        pieces = _pieces(case, single, whole)
        wide = pieces if CASES[case].exact else _pieces(case, double, whole)
        references |= {name: reference(name, piece, wide[name]) for name, piece in pieces.items()}
    if not references:
        raise GoldenError(f"{', '.join(chosen)}: nothing to write, the model has no vocabulary")
    del double  # and its gradient
    return Golden(_manifest(model, chosen), references, fingerprints(single, references, progress))


def _pieces(case: str, subject: Subject, whole: bool) -> dict[str, Piece]:
    pieces: dict[str, Piece] = {}

    def show(name: str, array: Array) -> None:
        given = array.dtype.kind != "f" or case == "sampling"  # inputs: a port needs all values
        pieces[f"{case}/{name}"] = Piece(array, whole or (given and array.size <= GIVEN))

    CASES[case].compute(subject, show)
    return pieces


def require_single(model: GPT2) -> None:
    """Raises InputError: the model is not in float32."""
    if model.dtype != np.float32:
        raise InputError(f"model: is in {model.dtype}, expected float32")


def in_double(model: GPT2) -> GPT2:
    """The same model with its weights in float64."""
    tree = {name: p.astype(np.float64) for name, p in named_parameters(model.params)}
    return GPT2(model.config, build_tree(tree), model.folder)


def _manifest(model: GPT2, chosen: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": f"npgpt2.golden/{SCHEMA}",
        "model": {"config": model.config.to_dict(), "sha256": checkpoint_sha256(model)},
        "made_by": {
            "npgpt2": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "blas": describe(),
            "simd": simd(),
        },
        "conventions": conventions(model.config),
        "cases": {name: CASES[name].words for name in chosen},
        "adamw": {**cases.ADAMW, "learning_rate": cases.LEARNING_RATE, "steps": cases.STEPS},
        "sampling": {name: _filters(options) for name, options in cases.SAMPLING.items()},
        "mistakes": {
            case: [[m.name, m.sentence] for m in mistakes]
            for case in chosen
            if (mistakes := mistakes_of(case, model))
        },
    }


def _filters(options: GenerationOptions) -> dict[str, Any]:
    names = ("temperature", "top_k", "top_p", "min_p")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def checkpoint_sha256(model: GPT2) -> str:
    """sha256 of all parameters' float32 bytes, concatenated in the order of `param_shapes`."""
    digest = hashlib.sha256()
    for _, array in named_parameters(model.params):
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()
