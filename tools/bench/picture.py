"""A picture of how cases came out: each ratio, from the least to the greatest round, and the target it has.

A ratio of memory is turned over, so that to the right is better for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.bench.rounds import Spread

MET, MISSED = "#1f4e9c", "#c2410c"


@dataclass(frozen=True)
class Mark:
    """One ratio."""

    label: str
    ratio: Spread
    target: float
    """At least."""

    @property
    def is_met(self) -> bool:
        """Whether the middle round reaches it."""
        return self.ratio.median >= self.target


def draw(marks: Sequence[Mark], path: Path) -> None:
    """Writes the picture.

    Args:
        marks: from top to bottom.
        path: a .png to write or replace.
    """
    figure = Figure(figsize=(9.6, 0.8 + 0.32 * len(marks)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, mark in enumerate(marks):
        colour = MET if mark.is_met else MISSED
        axes.plot([mark.ratio.min, mark.ratio.max], [row, row], color=colour, linewidth=7, alpha=0.3)
        axes.plot([mark.ratio.median], [row], "o", color=colour, markersize=6)
        axes.plot([mark.target], [row], "|", color="black", markersize=14, markeredgewidth=1.6)
    axes.axvline(1.0, color="black", linewidth=0.6, alpha=0.4)
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 5, 10, 20, 40)
    axes.set_xticks(ticks, [f"{each:g}×" for each in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(marks)), [mark.label for mark in marks], fontsize=8)
    axes.set_ylim(len(marks) - 0.4, -0.6)
    axes.set_xlabel("times what it is measured beside: dot median, bar all rounds, tick target")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)
