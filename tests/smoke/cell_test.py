"""One cell of the matrix, run and judged; the verdict is written whatever it says."""

import os
from pathlib import Path

from tests.smoke.matrix import Cell
from tests.smoke.runner import prove
from tests.smoke.verdict import failures, write


def test_cell(cell: Cell, tmp_path: Path, verdicts: Path) -> None:
    verdict = prove(cell, tmp_path, replay=replay(cell))
    # Of a test of the cpu that was sent to a pool of cards: whoever judges the cell is not to take it for its own.
    if routed := os.environ.get("PLUMBLINE_ROUTED"):
        verdict |= {"route": routed, "target": os.environ["TEST_TARGET"]}
    write(verdict, verdicts)
    assert verdict["status"] == "proven", failures(verdict)


def replay(cell: Cell) -> str:
    if "PLUMBLINE_ROUTED" in os.environ:
        return f"./bazelw test --config=remote {os.environ['TEST_TARGET']} --nocache_test_results"
    if "TEST_TARGET" in os.environ:
        return f"./bazelw test {cell.target} --nocache_test_results"
    options = f"--accelerator {cell.variant} --cards {cell.cards} --depth full -k '{cell.name}'"
    return f"python -m pytest tests/smoke/cell_test.py {options}"
