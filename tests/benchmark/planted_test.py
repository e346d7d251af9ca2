"""The benchmark notices what it is there to notice: a planted fault, in one seed of the smallest cell."""

import os
from pathlib import Path

from tests.benchmark.baselines import BASELINES, comparisons, diff, read
from tests.benchmark.cells import ARITHMETIC_FULL, Words
from tests.benchmark.holding import outputs
from tests.benchmark.runs import TRAINER, run

CELL = ARITHMETIC_FULL
WORSE = {"exact_match", "pass_at_4", "perplexity", "win_rate"}
"""What each of the faults ruins. Calibration is not among them: a model that knows little may know that it does."""


def worse_with(tmp_path: Path, *, program: Words = TRAINER, extra: Words = ()) -> set[str]:
    """The metrics that the comparison with the baseline calls worse, from one seed with a fault."""
    content = run(CELL, 0, tmp_path / "run", target=os.environ["TEST_TARGET"], program=program, extra=extra)
    baselines = read(BASELINES)
    # Not as a verdict: a fault's figures must never get into a baseline or a history.
    (outputs() / f"{tmp_path.name}.txt").write_text(diff(baselines, CELL.name, [content]) + "\n", encoding="utf-8")
    return {each.metric for each in comparisons(baselines[CELL.name], [content]) if each.word == "worse"}


def test_a_tenth_of_the_learning_rate_is_flagged(tmp_path: Path) -> None:
    at = CELL.settings.index("--learning-rate-peak")
    tenth = str(float(CELL.settings[at + 1]) / 10)
    assert worse_with(tmp_path, extra=("--learning-rate-peak", tenth)) >= WORSE


def test_labels_shifted_by_one_are_flagged(tmp_path: Path) -> None:
    assert worse_with(tmp_path, program=("tests.benchmark.planted", "labels_shifted")) >= WORSE


def test_without_a_fault_the_same_seed_is_not_flagged(tmp_path: Path) -> None:
    assert not worse_with(tmp_path)
