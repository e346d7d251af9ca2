"""`./bazelw run //tests/smoke:golden`: trains every golden curve anew and writes tests/smoke/goldens.json."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.smoke.covering import depths
from tests.smoke.goldens import curves_of
from tests.smoke.matrix import GOLDEN, Cell, Matrix
from tests.smoke.runner import preload, set_up
from tests.smoke.session import run_session
from tests.smoke.verdict import Point
from training.metrics.records import StepRecord, read_records
from training.plan import Plan

SCHEMA = 1


def plainest(matrix: Matrix) -> dict[str, Cell]:
    """For each curve a cell of the CPU that follows it: one rank, and no feature but those that decide numbers."""
    found: dict[str, Cell] = {}
    for cell in depths(matrix):
        if GOLDEN not in cell.claims:
            continue
        deciding = tuple(each for each in cell.features if cell.tables.features[each].decides_numbers)
        for framework in cell.tables.frameworks:
            plain = replace(cell, variant="cpu", framework=framework, cards=1, features=deciding)
            if cell.curve not in found and isinstance(plain.answer(), Plan):
                found[cell.curve] = plain
    return found


def trained(cell: Cell) -> list[Point]:
    """The curve of a run that nothing interrupts."""
    preload(cell)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        set_up(cell, folder)
        session = run_session([cell.recipe, *cell.words, "--checkpoint.export=none"], folder)
        if session.exit_code != 0:
            raise RuntimeError(f"{cell.name} ended with {session.exit_code}:\n{session.complained}")
        steps = (each for each in read_records(folder / "out/metrics.jsonl") if isinstance(each, StepRecord))
        return [Point(each.step, each.loss, each.gradient_norm) for each in steps]


def text(curves: Mapping[str, list[Point]]) -> str:
    """The content of goldens.json, a curve to a line."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps([[each.step, each.loss, each.gradient_norm] for each in points])}"
        for name, points in sorted(curves.items())
    ]
    return f'{{"schema": {SCHEMA}, "curves": {{\n' + ",\n".join(lines) + "\n}}\n"


def main(arguments: list[str]) -> int:
    """Writes into the workspace that `bazel run` names: all curves, or with `missing` those that are not there.

    Curves that no cell follows are dropped.
    """
    path = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", ".")) / "tests/smoke/goldens.json"
    wanted, before = plainest(Matrix()), curves_of(path) if arguments == ["missing"] else {}
    curves = {name: points for name, points in before.items() if name in wanted}
    for name, cell in wanted.items():
        if name not in curves:
            curves[name] = trained(cell)
            print(f"{name} from {cell.name}: {curves[name][0].loss:.4f} → {curves[name][-1].loss:.4f}", flush=True)
        path.write_text(text(curves), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
