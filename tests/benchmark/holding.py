"""What the tests of the tier do: run a cell's seeds, leave the verdicts, and hold them against the baseline."""

import os
from pathlib import Path
from typing import Any

from tests.benchmark.baselines import BASELINES, comparisons, diff, read, write_verdict
from tests.benchmark.cells import Cell
from tests.benchmark.rule import Comparison
from tests.benchmark.runs import run


def outputs() -> Path:
    """Where a test leaves files for people and commands."""
    return Path(os.environ["TEST_UNDECLARED_OUTPUTS_DIR"])


def run_all(cell: Cell, scratch: Path, *, warmed_up: Path | None = None) -> list[dict[str, Any]]:
    """The verdicts of all seeds, each written as soon as it is there; a claim that a seed owes fails the test."""
    verdicts = []
    for seed in cell.seeds:
        out = scratch / f"{cell.name}_{seed}"
        content = run(cell, seed, out, target=os.environ["TEST_TARGET"], warmed_up=warmed_up)
        write_verdict(content, outputs())
        broken = [claim for claim in content["claims"] if not claim["holds"]]
        assert not broken, f"{cell.name}, seed {seed}: {broken}"
        verdicts.append(content)
    return verdicts


def hold(cell: Cell, scratch: Path, *, warmed_up: Path | None = None) -> None:
    """Fails if a metric's mean over the seeds is not what the baseline lets one expect.

    Args:
        cell: what is trained.
        scratch: a folder for the runs.
        warmed_up: a folder for models to start from, of cells that share them.
    """
    verdicts = run_all(cell, scratch, warmed_up=warmed_up)
    baselines = read(BASELINES)
    table = diff(baselines, cell.name, verdicts)
    print(table)
    assert cell.name in baselines, f"{table}\nhint: ./bazelw run //tests/benchmark:baselines -- --write"
    moved = changed(comparisons(baselines[cell.name], verdicts))
    assert not moved, (
        f"{table}\nhint: if {', '.join(moved)} should be so, ./bazelw run //tests/benchmark:baselines -- --write"
    )


def changed(compared: list[Comparison]) -> list[str]:
    """The metrics that are not as before."""
    return [each.metric for each in compared if not each.holds]
