"""A plot of the log: training and validation loss over steps."""

from collections.abc import Sequence
from pathlib import Path

from npgpt2.base.files import replaced
from npgpt2.train.log import Line


def draw(lines: Sequence[Line], picture: Path) -> None:
    """Plot a log as a PNG, if it has a step and matplotlib (extra `train`) is installed.

    The training loss is drawn faintly, with its moving mean over a fiftieth of the run on top.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        return
    steps = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    checks = [line for line in lines if "validation" in line]
    if not steps:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    x, y = zip(*steps, strict=True)
    width = max(1, len(y) // 50)
    ends = range(width, len(y) + 1, max(1, width // 4))
    axes.plot(x, y, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(
        [x[end - 1 - width // 2] for end in ends],
        [sum(y[end - width : end]) / width for end in ends],
        color="tab:blue",
        label="training",
    )
    if checks:
        best = min(checks, key=lambda line: line["validation"])
        axes.plot(
            [line["step"] for line in checks],
            [line["validation"] for line in checks],
            color="tab:orange",
            marker="o",
            markersize=3,
            label="validation",
        )
        axes.annotate(
            f"{best['validation']:.3f} = {best['bits_per_byte']:.3f} bits per byte",
            (best["step"], best["validation"]),
            xytext=(0, 18),
            textcoords="offset points",
            ha="right" if best["step"] > x[-1] / 2 else "left",
            arrowprops={"arrowstyle": "-", "color": "gray"},
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced(picture) as work:
        figure.savefig(work, format="png", dpi=120)
