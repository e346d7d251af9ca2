"""`./bazelw run //tests/benchmark:picture`: draws the last results' loss curves, and where each seed came out.

./bazelw run //tests/benchmark:picture -- --out docs/benchmark.png [FOLDER…]
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.benchmark.baselines import LOGS, found_in, values
from tests.benchmark.rule import interval

COLOURS = ("#1f4e9c", "#c2410c", "#3f7d3a", "#7c3aad", "#8a6d00")
SHOWN = "exact_match"
SMOOTHED_STEPS = 10


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Writes a picture: on the left the training loss of every seed, on the right the metric with its 95 % interval.

    Args:
        found: the verdicts of each cell.
        path: a .png to write or replace.
    """
    judged = {cell: verdicts for cell, verdicts in found.items() if SHOWN in verdicts[0]["metrics"]}
    figure = Figure(figsize=(9.6, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for colour, (cell, verdicts) in zip(COLOURS, found.items(), strict=False):
        for number, verdict in enumerate(verdicts):
            curve = verdict["curve"]
            losses = [point["loss"] for point in curve]
            windows = [losses[max(0, at - SMOOTHED_STEPS) : at + SMOOTHED_STEPS + 1] for at in range(len(losses))]
            left.plot(
                [point["step"] for point in curve],
                [sum(window) / len(window) for window in windows],
                color=colour,
                linewidth=1.2,
                alpha=0.75,
                label=None if number else f"{cell}, {len(verdicts)} seeds",
            )
    left.set_yscale("log")
    left.set_xlabel("optimizer step")
    left.set_ylabel("training loss (nats per answer token)")
    left.legend(frameon=False, fontsize=9)
    for at, (cell, verdicts) in enumerate(judged.items()):
        colour = COLOURS[list(found).index(cell)]
        seeds = values(verdicts)[SHOWN]
        if len(seeds) > 1:
            low, high = interval(seeds)
            right.plot([at, at], [low, high], color=colour, linewidth=8, alpha=0.25, solid_capstyle="butt")
        right.plot([at] * len(seeds), seeds, "o", color=colour, markersize=5, alpha=0.7)
    right.set_xticks(range(len(judged)), [cell.replace("_", "\n") for cell in judged], fontsize=9)
    right.set_xlim(-0.6, max(len(judged), 1) - 0.4)
    right.set_ylabel("exact match on held-out problems")
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    beside = path.with_suffix(".tmp")
    figure.savefig(beside, format="png")
    beside.replace(path)


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
