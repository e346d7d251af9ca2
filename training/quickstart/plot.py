"""loss.png: what was learned, in one look. The one module of ours that imports matplotlib."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.metrics.records import Record, StepRecord, ValidationRecord

INCHES, DOTS_PER_INCH = (7.2, 4.2), 100
TRAINING, HELD_OUT = "#8aa4c8", "#c2410c"
SMOOTHED_SHARE = 0.2
"""Share of all steps over which the smooth line averages, centred on each step."""


def draw(records: Iterable[Record], path: Path, *, title: str, loss_unit: str, held_out: str) -> None:
    """Draws the loss of each step, and the held-out loss from before to after, and writes the picture.

    Args:
        records: those of metrics.jsonl; at least one step.
        path: a .png to write or replace.
        title: what is learned.
        loss_unit: what the loss is counted in.
        held_out: what the held-out loss is taken on.
    """
    every = list(records)
    steps = [each for each in every if isinstance(each, StepRecord)]
    held = [each for each in every if isinstance(each, ValidationRecord)]
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers, losses = [each.step for each in steps], [each.loss for each in steps]
    axes.plot(numbers, losses, color=TRAINING, linewidth=0.8, alpha=0.5)
    axes.plot(numbers, smooth(losses), color=TRAINING, linewidth=2.2, label="training loss, each step and smoothed")
    if held:
        axes.plot(
            [each.step for each in held],
            [each.loss for each in held],
            color=HELD_OUT,
            linewidth=1.6,
            marker="o",
            markersize=7,
            label=f"held-out loss: {held_out}",
        )
        for each, when, side in ((held[0], "before", "left"), (held[-1], "after", "right")):
            axes.annotate(
                f"{each.loss:.2f} {when}",
                (each.step, each.loss),
                textcoords="offset points",
                xytext=(0, -11),
                va="top",
                ha=side,
                fontsize=12,
                fontweight="bold",
                color=HELD_OUT,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
    seconds = sum(each.seconds for each in steps)
    num_tokens = sum(each.num_tokens for each in steps)
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_xlabel(f"optimizer step ({num_tokens:,} tokens in {seconds:,.0f} seconds)")
    axes.set_ylabel(f"loss ({loss_unit})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)


def smooth(values: list[float]) -> list[float]:
    """The mean of each value and its neighbours; fewer at the ends, and always as many on both sides."""
    reach = max(1, round(len(values) * SMOOTHED_SHARE / 2))
    means = []
    for at in range(len(values)):
        side = min(reach, at, len(values) - 1 - at)
        window = values[at - side : at + side + 1]
        means.append(sum(window) / len(window))
    return means
