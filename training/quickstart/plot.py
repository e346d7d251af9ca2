"""curves.png: what was learned in both acts, in one look. The one module of ours that imports matplotlib."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.metrics.records import Record, StepRecord, ValidationRecord
from training.quickstart.report import Rewarded
from training.whole import whole

INCHES, DOTS_PER_INCH = (11.0, 4.2), 100
TRAINING, HELD_OUT = "#8aa4c8", "#c2410c"
SMOOTHED_SHARE = 0.2
"""Share of all steps over which the smooth line averages, centred on each step."""


def draw(
    records: Iterable[Record], path: Path, *, title: str, loss_unit: str, held_out: str, rewarded: Rewarded
) -> None:
    """Draws losses of the first act and rewards of the second, each with what was held out, and writes the picture.

    Args:
        records: those of metrics.jsonl; at least one step.
        path: a .png to write or replace.
        title: what is learned.
        loss_unit: what the loss is counted in.
        held_out: what the held-out loss is taken on.
        rewarded: the second act.
    """
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _losses(left, records, title=title, loss_unit=loss_unit, held_out=held_out)
    _rewards(right, rewarded)
    with whole(path) as beside:
        figure.savefig(beside, format="png")


def _losses(axes: Axes, records: Iterable[Record], *, title: str, loss_unit: str, held_out: str) -> None:
    every = list(records)
    steps = [each for each in every if isinstance(each, StepRecord)]
    held = [each for each in every if isinstance(each, ValidationRecord)]
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
        _name_ends(axes, (held[0].step, held[0].loss), (held[-1].step, held[-1].loss), points=-11)
    seconds = sum(each.seconds for each in steps)
    num_tokens = sum(each.num_tokens for each in steps)
    _dress(axes, title, f"optimizer step ({num_tokens:,} tokens in {seconds:,.0f} seconds)", f"loss ({loss_unit})")
    axes.legend(loc="upper right", frameon=False, fontsize=9)


def _rewards(axes: Axes, rewarded: Rewarded) -> None:
    numbers = [each.step for each in rewarded.steps]
    rewards = [each.metrics["reward_mean"] for each in rewarded.steps]
    axes.plot(numbers, rewards, color=TRAINING, linewidth=0.8, alpha=0.5)
    axes.plot(numbers, smooth(rewards), color=TRAINING, linewidth=2.2, label="mean reward, each step and smoothed")
    ends = (0, rewarded.reward_before), (numbers[-1], rewarded.reward_after)
    label = f"mean reward: {rewarded.held_out}"
    axes.plot(*zip(*ends, strict=True), color=HELD_OUT, linewidth=0, marker="o", markersize=7, label=label)
    _name_ends(axes, *ends, points=8)
    num_drawn = sum(each.num_samples for each in rewarded.steps)
    about = f"step of GRPO ({num_drawn:,} answers in {rewarded.seconds:,.0f} seconds)"
    _dress(axes, rewarded.title, about, "reward")
    axes.set_ylim(-0.05, 1.15)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _name_ends(axes: Axes, before: tuple[float, float], after: tuple[float, float], *, points: int) -> None:
    """Writes beside both points what they are, so many points above, or below."""
    for (step, value), when, side in ((before, "before", "left"), (after, "after", "right")):
        axes.annotate(
            f"{value:.2f} {when}",
            (step, value),
            textcoords="offset points",
            xytext=(0, points),
            va="top" if points < 0 else "bottom",
            ha=side,
            fontsize=12,
            fontweight="bold",
            color=HELD_OUT,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def _dress(axes: Axes, title: str, below: str, beside: str) -> None:
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def smooth(values: list[float]) -> list[float]:
    """The mean of each value and its neighbours; fewer at the ends, and always as many on both sides."""
    reach = max(1, round(len(values) * SMOOTHED_SHARE / 2))
    means = []
    for at in range(len(values)):
        side = min(reach, at, len(values) - 1 - at)
        window = values[at - side : at + side + 1]
        means.append(sum(window) / len(window))
    return means
