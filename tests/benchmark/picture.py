"""`./bazelw run //tests/benchmark:picture`: draws the last results' curves, and where each seed came out.

./bazelw run //tests/benchmark:picture -- --out docs/benchmark.png [FOLDER…]
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.benchmark.baselines import LOGS, MISSED_REWARD, found_in, values
from tests.benchmark.rule import interval

COLOURS = ("#1f4e9c", "#c2410c", "#3f7d3a", "#7c3aad", "#8a6d00", "#0f7c8c", "#b03060", "#555555")
SHOWN = ("exact_match", "pairs_right")
"""What is drawn of a cell: the first of these that it has."""
SMOOTHED_SHARE = 60
"""A curve is smoothed over one in so many of its steps, to both sides."""


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Writes a picture: the curve of every seed, losses and rewards apart, and the metric with its 95 % interval.

    A hollow mark is the mean of the models that the seeds started from.

    Args:
        found: the verdicts of each cell.
        path: a .png to write or replace.
    """
    shown = {cell: name for cell, verdicts in found.items() if (name := _shown(verdicts[0]["metrics"]))}
    figure = Figure(figsize=(12.8, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(3, 3, 3))
    for colour, (cell, verdicts) in zip(COLOURS, found.items(), strict=False):
        axes = middle if verdicts[0]["curve_is"] == MISSED_REWARD else left
        for number, verdict in enumerate(verdicts):
            heights = _smoothed([point["loss"] for point in verdict["curve"]])
            axes.plot(
                [point["step"] for point in verdict["curve"]],
                [1.0 - height for height in heights] if axes is middle else heights,
                color=colour,
                linewidth=1.2,
                alpha=0.75,
                label=None if number else f"{cell}, {len(verdicts)} seeds",
            )
    left.set_yscale("log")
    left.set_ylabel("training loss (nats per answer token, or per pair)")
    middle.set_ylim(0, 1)
    middle.set_ylabel("mean reward of drawn completions")
    for axes in (left, middle):
        axes.set_xlabel("optimizer step")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    for at, (cell, name) in enumerate(shown.items()):
        colour, verdicts = COLOURS[list(found).index(cell)], found[cell]
        seeds = values(verdicts)[name]
        before = [each["metrics_before"][name] for each in verdicts if name in each["metrics_before"]]
        if before:
            right.plot([at], [sum(before) / len(before)], "o", markerfacecolor="none", color=colour, markersize=6)
        if len(seeds) > 1:
            low, high = interval(seeds)
            right.plot([at, at], [low, high], color=colour, linewidth=8, alpha=0.25, solid_capstyle="butt")
        right.plot([at] * len(seeds), seeds, "o", color=colour, markersize=5, alpha=0.7)
    labels = [f"{cell.replace('_', chr(10))}{'*' if name == SHOWN[1] else ''}" for cell, name in shown.items()]
    right.set_xticks(range(len(shown)), labels, fontsize=8)
    right.set_xlim(-0.6, max(len(shown), 1) - 0.4)
    right.set_ylabel("exact match on held-out problems\n(* pairs in the right order)")
    for axes in (left, middle, right):
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)


def _shown(metrics: Mapping[str, float]) -> str | None:
    return next((name for name in SHOWN if name in metrics), None)


def _smoothed(heights: Sequence[float]) -> list[float]:
    """The mean of each value and of those around it."""
    wide = len(heights) // SMOOTHED_SHARE
    windows = [heights[max(0, at - wide) : at + wide + 1] for at in range(len(heights))]
    return [sum(window) / len(window) for window in windows]


def main() -> None:
    """Draws what the last test left, or what lies below the folders that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="where verdicts lie (default: the last test's outputs)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmark.png"), help="picture (default: %(default)s)")
    arguments = parser.parse_args()
    root, here = (Path(os.environ[f"BUILD_{name}_DIRECTORY"]) for name in ("WORKSPACE", "WORKING"))
    found = found_in([here / each for each in arguments.folders] or [root / LOGS])
    if not found:
        parser.error("no verdict there; run ./bazelw test //tests/benchmark:arithmetic_test first")
    draw(found, root / arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
