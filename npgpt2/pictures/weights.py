"""The weights as a picture: the distribution of each tensor's values, and the outliers."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npgpt2.base.arrays import Array
from npgpt2.base.errors import CheckpointError, MissingPackage, WeightsWarning
from npgpt2.base.files import output
from npgpt2.checkpoints.checkpoint import Checkpoint, Progress, nonfinite
from npgpt2.checkpoints.formats.tensors import Files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 6.0  # an outlier: standard deviations from the mean; 1 in 500 million if normal
DRAWN = 300  # outliers drawn per tensor, the farthest
LEVELS = (0.1, 1.0, 25.0, 50.0, 75.0, 99.0, 99.9)  # percentiles: the median, and bands around it
BANDS = ((0, 6, 0.2), (1, 5, 0.35), (2, 4, 0.6))  # index of low level, of high level, opacity
BINS = 100  # most bins of a histogram
COLUMNS = 4
PIECE = 1 << 22  # values converted to float64 at a time
LARGEST = 1e300  # limit of what matplotlib can draw
BLUE, RED = "#0072b2", "#d55e00"  # colour-blind-safe


class Outlier(NamedTuple):
    """A value far from its tensor's mean: its index, the value, its distance in deviations."""

    tensor: str
    place: tuple[int, ...]
    value: float
    deviations: float


class Spread(NamedTuple):
    """The distribution of a tensor's finite values.

    Attributes:
        lost: number of values that are NaN or infinite.
        mean, std: NaN if no value is finite.
        quantiles: (7,) exact percentiles at `LEVELS`, each a value of the tensor.
        counts, edges: (N,) and (N + 1,) a histogram from the smallest to the largest value.
        far: number of outliers: values beyond `FAR` standard deviations.
        outliers: the `DRAWN` farthest of them, the farthest first.
    """

    name: str
    shape: tuple[int, ...]
    lost: int
    mean: float
    std: float
    quantiles: Array
    counts: Array
    edges: Array
    far: int
    outliers: list[Outlier]


def spread(name: str, array: Array) -> Spread:
    """The distribution of one tensor, of any shape and floating dtype.

    >>> x = np.tile([-1.0, 1.0], 500)
    >>> x[7] = 50.0
    >>> found = spread("x", x)
    >>> found.outliers[0]._replace(deviations=round(found.outliers[0].deviations, 2))
    Outlier(tensor='x', place=(7,), value=50.0, deviations=26.71)
    >>> found.far, found.quantiles.tolist()
    (1, [-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 50.0])
    """
    flat = array.reshape(-1)
    finite = np.isfinite(flat)
    sound = flat if finite.all() else flat[finite]
    lost = flat.size - sound.size
    if not sound.size:
        nothing = np.full(len(LEVELS), np.nan)
        none, edges = np.zeros(1, np.int64), np.array([-0.5, 0.5])
        return Spread(name, array.shape, lost, math.nan, math.nan, nothing, none, edges, 0, [])
    # If the squares overflow float64, no value is an outlier.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum(float(p.sum()) for p in _wide(sound)) / sound.size
        std = math.sqrt(sum(float(((p - mean) ** 2).sum()) for p in _wide(sound)) / sound.size)
    quantiles = np.quantile(sound, np.array(LEVELS) / 100, method="inverted_cdf")
    counts, edges = _histogram(sound)
    far, outliers = _outliers(name, array, mean, std)
    return Spread(name, array.shape, lost, mean, std, quantiles, counts, edges, far, outliers)


def _histogram(flat: Array) -> tuple[Array, Array]:
    """Counts and edges. (np.histogram would convert all values to float64 at once.)"""
    bins = min(BINS, math.isqrt(flat.size) + 5)
    low, high = max(float(flat.min()), -LARGEST), min(float(flat.max()), LARGEST)
    if not (high - low) / bins:  # all values equal, or nearly
        around = max(0.5, abs(low) / 2)
        low, high = low - around, high + around
    counts, step = np.zeros(bins, np.int64), (high - low) / bins
    for piece in _wide(flat):
        at = ((piece - low) / step).astype(np.int64)
        counts += np.bincount(np.clip(at, 0, bins - 1), minlength=bins)
    return counts, low + step * np.arange(bins + 1)


def _wide(flat: Array) -> Iterator[Array]:
    return (flat[at : at + PIECE].astype(np.float64) for at in range(0, flat.size, PIECE))


def _outliers(name: str, array: Array, mean: float, std: float) -> tuple[int, list[Outlier]]:
    """The number of outliers, and the `DRAWN` farthest."""
    flat, places = array.reshape(-1), []
    for n, piece in enumerate(_wide(flat)):
        with np.errstate(invalid="ignore"):
            far = np.isfinite(piece) & (np.abs(piece - mean) > FAR * std)
        places.append(np.flatnonzero(far) + n * PIECE)
    at = np.concatenate(places)
    if not at.size or not std:  # no outlier, or squares that underflow to 0
        return 0, []
    distance = np.abs(flat[at].astype(np.float64) - mean) / std
    farthest = np.argsort(-distance, kind="stable")[:DRAWN]
    where = zip(*np.unravel_index(at[farthest], array.shape), strict=True)
    return at.size, [
        Outlier(name, tuple(map(int, index)), float(flat[i]), float(d))
        for index, i, d in zip(where, at[farthest], distance[farthest], strict=True)
    ]


def spreads(
    checkpoint: Checkpoint,
    dtype: str = "float32",
    strict: bool = False,
    progress: Progress = lambda names, what: names,
) -> list[Spread]:
    """The distributions of all tensors, in the order of `param_shapes`. Reads one at a time.

    Args:
        strict: raise an error for NaN or infinity, instead of a warning.

    Raises:
        CheckpointError: a tensor contains NaN or infinity (with `strict`); a file is cut off.

    >>> found = spreads(Checkpoint.open("tests/data/tiny"))
    >>> len(found), found[0].name, found[0].shape, round(found[0].std, 4)
    (40, 'wte.weight', (512, 64), 0.1356)
    """
    files, found = Files(mmap=True), []
    for name in progress(checkpoint.tensors, "reading the weights"):
        info = checkpoint.tensors[name]
        array = files.array(info, np.dtype(dtype))
        if text := nonfinite(array, info):
            if strict:
                raise CheckpointError(f"{text}, expected finite weights. Download again")
            warnings.warn(text, WeightsWarning, stacklevel=2)
        found.append(spread(name, array))
    return found


def farthest(found: Sequence[Spread], count: int = 10) -> list[Outlier]:
    """The `count` farthest outliers of all tensors, the farthest first.

    >>> farthest(spreads(Checkpoint.open("tests/data/tiny")))[0].tensor
    'h.2.mlp.c_proj.weight'
    """
    every = [outlier for one in found for outlier in one.outliers]
    return sorted(every, key=lambda outlier: -outlier.deviations)[:count]


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def draw_all(found: Sequence[Spread], model: str, path: Path) -> None:
    """A PNG with a panel per kind of tensor: bands by layer for blocks, else a histogram.

    Args:
        found: the result of `spreads`.
        model: name of the model, for the title.

    Raises:
        FileError: the file cannot be written.
    """
    kinds = _kinds(found)
    rows = -(-len(kinds) // COLUMNS)
    figure = _figure(figsize=(4 * COLUMNS, 2.5 * rows + 1.4))
    panels = iter(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for (kind, tensors), axes in zip(kinds.items(), panels, strict=False):
        if tensors[0].name == kind:
            _draw_histogram(axes, tensors[0])
        else:
            _draw_layers(axes, tensors)
        axes.set_title(_title(kind, tensors), fontsize="medium")
    for axes in panels:  # the unused ones of the last row
        axes.set_axis_off()
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    numbers = sum(math.prod(one.shape) for one in found)
    title = f"{model}: {numbers:,} parameters in {len(found)} tensors"
    figure.suptitle(title, fontsize="x-large", parse_math=False)  # a $ starts no formula
    figure.legend(*_legend(), loc="outside lower center", ncols=3)
    _save(figure, path)


def draw_one(one: Spread, title: str, path: Path) -> None:
    """A PNG with one tensor's histogram. Raises FileError: the file cannot be written."""
    figure = _figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    _draw_histogram(axes, one)
    if math.isfinite(one.std):
        for n, style in ((0, "-"), (1, "--"), (FAR, ":")):
            for sign in (-1, 1) if n else (1,):
                axes.axvline(one.mean + sign * n * one.std, color="black", linewidth=1,
                             linestyle=style)  # fmt: skip
            plural = "" if n == 1 else "s"
            words = f"± {n:g} standard deviation{plural}" if n else "mean"
            axes.plot([], [], color="black", linewidth=1, linestyle=style, label=words)
    axes.set_xlabel(f"value: mean {one.mean:.6g}, standard deviation {one.std:.6g}")
    axes.set_ylabel("number of values")
    axes.set_title(_title(f"{title}, {' × '.join(map(str, one.shape)) or 'scalar'}", [one]))
    axes.legend(fontsize="small")
    _save(figure, path)


def _figure(**options: Any) -> "Figure":
    """A figure without pyplot: no window, no global state. Raises MissingPackage."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackage("plots need matplotlib. Run: pip install 'npgpt2[plot]'") from None
    return Figure(**options)


def _save(figure: "Figure", path: Path) -> None:
    with output(path) as work:
        figure.savefig(work, format="png", dpi=100)


def _kinds(found: Sequence[Spread]) -> dict[str, list[Spread]]:
    """Tensors grouped by their name within a block, such as "ln_1.weight".

    >>> found = spreads(Checkpoint.open("tests/data/tiny"))
    >>> [(kind, len(tensors)) for kind, tensors in _kinds(found).items()][1:3]
    [('wpe.weight', 1), ('ln_1.weight', 3)]
    """
    kinds: dict[str, list[Spread]] = {}
    for one in found:
        kinds.setdefault(re.sub(r"^h\.\d+\.", "", one.name), []).append(one)
    return kinds


def _title(kind: str, tensors: Sequence[Spread]) -> str:
    far, lost = sum(one.far for one in tensors), sum(one.lost for one in tensors)
    words = f": {far:,} outlier{'s' if far > 1 else ''}" if far else ""
    return kind + words + (f"\nwithout {lost:,} NaN or infinite" if lost else "")


def _draw_layers(axes: "Axes", tensors: Sequence[Spread]) -> None:
    """Bands around the median, a step per layer; outliers as dots, by their place in the tensor."""
    from matplotlib.ticker import MaxNLocator

    edges = np.arange(len(tensors) + 1) - 0.5
    axes.use_sticky_edges = False  # leave a margin above and below the bands
    levels = np.array([one.quantiles for one in tensors]).T.astype(np.float64)
    for low, high, density in BANDS:
        axes.stairs(levels[high], edges, baseline=levels[low], fill=True, color=BLUE,
                    alpha=density, linewidth=0)  # fmt: skip
    axes.hlines(levels[3], edges[:-1], edges[1:], color="black", linewidth=1.2)
    for layer, one in enumerate(tensors):
        place = [layer + 0.8 * (_share(o.place, one.shape) - 0.5) for o in one.outliers]
        axes.scatter(place, [o.value for o in one.outliers], s=7, color=RED, linewidths=0)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("layer", fontsize="small")
    axes.grid(alpha=0.3, axis="y")


def _share(place: tuple[int, ...], shape: tuple[int, ...]) -> float:
    """The relative position of a value in its tensor, from 0 to 1."""
    return float(np.ravel_multi_index(place, shape)) / math.prod(shape)


def _draw_histogram(axes: "Axes", one: Spread) -> None:
    """Counts on a logarithmic scale; below them, a dot for each outlier."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())  # no 6 × 10⁰
    axes.stairs(np.maximum(one.counts, 0.5), one.edges, baseline=0.5, fill=True, color=BLUE,
                alpha=0.6)  # fmt: skip
    values = [outlier.value for outlier in one.outliers]
    label = f"beyond {FAR:g} standard deviations: {one.far:,}"
    axes.scatter(values, [0.35] * len(values), s=9, color=RED, linewidths=0, label=label)
    axes.set_ylim(0.22, max(2.0, 2.0 * float(one.counts.max())))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("value", fontsize="small")
    axes.grid(alpha=0.3)


def _legend() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Line2D([], [], color="black", linewidth=1.2)]
    words = ["median"]
    for low, high, _ in reversed(BANDS):
        # Bands overlap: their opacities add up.
        density = 1 - math.prod(1 - d for lo, _, d in BANDS if lo <= low)
        handles.append(Patch(color=BLUE, alpha=density, linewidth=0))
        words.append(f"percentiles {LEVELS[low]:g} to {LEVELS[high]:g}")
    handles.append(Line2D([], [], color=RED, marker="o", markersize=3, linestyle=""))
    words.append(f"outliers: beyond {FAR:g} standard deviations (at most {DRAWN} per tensor)")
    handles.append(Patch(color=BLUE, alpha=0.6, linewidth=0))
    return handles, [*words, "histogram: number of values, logarithmic scale"]
