"""The golden curves: what a loss curve must be, whichever framework, cards and variant computed it.

    ./bazelw run //tests/smoke:golden      trains each anew and writes tests/smoke/goldens.json

One curve stands for all cells that differ only in what must not change numbers, so that holding to it is parity across
the row. It comes from a run that was never killed, in one process on a CPU.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.smoke.matrix import GOLDEN, Cell
from tests.smoke.verdict import Point

FILE = Path(__file__).with_name("goldens.json")
REFRESH = "./bazelw run //tests/smoke:golden"


@dataclass(frozen=True)
class Golden:
    """One curve, and how near to it another must stay."""

    points: list[Point]
    tolerance: float
    """Largest difference of a loss or gradient norm, relative to the golden one."""
    loss_least: float = 0.0
    """What a difference of losses is relative to at least."""


def golden_of(cell: Cell) -> Golden | None:
    """The curve that a cell must follow; None if it follows none, or nobody has trained it yet."""
    if GOLDEN not in cell.claims:
        return None
    points = curves_of(FILE).get(cell.curve)
    return Golden(points, cell.tolerance, cell.tables.recipes[cell.recipe].loss_least) if points else None


@cache
def curves_of(file: Path) -> dict[str, list[Point]]:
    """The curves in a file, by name; none if it is not there."""
    curves = json.loads(file.read_text(encoding="utf-8"))["curves"] if file.exists() else {}
    return {name: [Point(*each) for each in points] for name, points in curves.items()}
