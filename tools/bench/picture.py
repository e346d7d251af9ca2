"""A picture of how cases came out: each ratio, from the least to the greatest round, and the target it has.

A ratio of memory is turned over, so that to the right is better for all. Below them, what a step is made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.bench.kept import PART, Kept
from tools.bench.rounds import Spread

MET, MISSED, WITHOUT = "#1f4e9c", "#c2410c", "#6b7280"
PARTS = ("#9ca3af", "#60a5fa", "#1f4e9c", "#a16207", "#c2410c", "#16a34a", "#d1d5db")


@dataclass(frozen=True)
class Mark:
    """One ratio."""

    label: str
    ratio: Spread
    target: float | None
    """At least; None if there is none."""

    @property
    def colour(self) -> str:
        """Whether the middle round reaches it."""
        if self.target is None:
            return WITHOUT
        return MET if self.ratio.median >= self.target else MISSED


def marks(lines: Sequence[Kept]) -> list[Mark]:
    """The ratios of each case's second contender to its first: of speed, of figures that are compared, of memory."""
    made = []
    for kept in lines:
        first, second, *_ = kept.rows
        label = f"{kept.case}: {second.contender} / {first.contender}"
        if "speed" in second.wanted or not second.wanted:
            made.append(Mark(label, second.speed_ratio, second.wanted.get("speed")))
        for name, ratio in second.also_ratio.items():
            made.append(Mark(f"{label}, {name.replace('_', ' ')}", ratio, second.wanted.get(name)))
        if most := second.wanted.get("memory"):
            held = second.memory_ratio
            turned = Spread(1 / held.max, 1 / held.median, 1 / held.min)
            made.append(Mark(f"{label}, memory", turned, 1 / most))
    return made


def stacks(lines: Sequence[Kept]) -> dict[str, dict[str, float]]:
    """By contender, the percentage that each part takes, of those that say so."""
    return {
        f"{kept.case}: {row.contender}": {
            key.removeprefix(PART): value for key, value in row.also.items() if key.startswith(PART)
        }
        for kept in lines
        for row in kept.rows
        if any(key.startswith(PART) for key in row.also)
    }


def draw(marks: Sequence[Mark], path: Path, stacks: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Writes the picture.

    Args:
        marks: from top to bottom.
        path: a .png to write or replace.
        stacks: by label, the parts of a whole of 100.
    """
    heights = [0.8 + 0.32 * len(marks)] + ([1.1 + 0.4 * len(stacks)] if stacks else [])
    figure = Figure(figsize=(9.6, sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    _draw_marks(all_axes[0], marks)
    if stacks:
        _draw_stacks(all_axes[1], stacks)
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)


def _draw_marks(axes: Axes, marks: Sequence[Mark]) -> None:
    for row, mark in enumerate(marks):
        axes.plot([mark.ratio.min, mark.ratio.max], [row, row], color=mark.colour, linewidth=7, alpha=0.3)
        axes.plot([mark.ratio.median], [row], "o", color=mark.colour, markersize=6)
        if mark.target is not None:
            axes.plot([mark.target], [row], "|", color="black", markersize=14, markeredgewidth=1.6)
    axes.axvline(1.0, color="black", linewidth=0.6, alpha=0.4)
    axes.set_xscale("log")
    ticks = (0.2, 0.5, 1, 2, 5, 10, 20, 40)
    axes.set_xticks(ticks, [f"{each:g}×" for each in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(marks)), [mark.label for mark in marks], fontsize=8)
    axes.set_ylim(len(marks) - 0.4, -0.6)
    axes.set_xlabel("times what it is measured beside: dot median, bar all rounds, tick target")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_stacks(axes: Axes, stacks: Mapping[str, Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for parts in stacks.values() for name in parts))
    for row, parts in enumerate(stacks.values()):
        left = 0.0
        for name, colour in zip(names, PARTS, strict=False):
            label = name if row == 0 else None
            axes.barh(row, parts.get(name, 0.0), left=left, color=colour, label=label, height=0.6)
            left += parts.get(name, 0.0)
    axes.set_yticks(range(len(stacks)), list(stacks), fontsize=8)
    axes.set_ylim(len(stacks) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the loop of steps, by the clock")
    axes.legend(ncols=len(names), fontsize=7, loc="upper center", bbox_to_anchor=(0.4, -0.35), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
