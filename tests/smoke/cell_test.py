"""One cell of the matrix, run and judged; the verdict is written whatever it says."""

import os
from pathlib import Path

from tests.smoke.matrix import Cell
from tests.smoke.runner import prove
from tests.smoke.verdict import failures, write


def test_cell(cell: Cell, tmp_path: Path, verdicts: Path) -> None:
    verdict = prove(cell, tmp_path, replay=replay(cell))
    write(verdict, verdicts)
    assert verdict["status"] == "proven", failures(verdict)


def replay(cell: Cell) -> str:
    if "TEST_TARGET" in os.environ:
        return f"./bazelw test {cell.target} --nocache_test_results"
    options = f"--accelerator {cell.variant} --cards {cell.cards} --depth full -k '{cell.name}'"
    return f"python -m pytest tests/smoke/cell_test.py {options}"
