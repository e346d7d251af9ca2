"""The benchmark notices what it is there to notice: a planted fault, in one seed of a cell of each recipe."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.benchmark.baselines import BASELINES, comparisons, diff, read
from tests.benchmark.cells import ARITHMETIC_DPO, ARITHMETIC_FULL, ARITHMETIC_GRPO, ARITHMETIC_REWARD, Cell, Words
from tests.benchmark.holding import outputs
from tests.benchmark.runs import TRAINER, run

WORSE = {"exact_match", "pass_at_4", "perplexity", "win_rate"}
"""What each of the faults of sft ruins. Calibration is not among them: a model that knows little may know that."""

OTHERS: Mapping[str, tuple[Cell, set[str]]] = {
    "advantages_negated": (ARITHMETIC_GRPO, {"learns", "least_exact_match", "gain_exact_match"}),
    "pairs_swapped": (ARITHMETIC_DPO, {"least_reward_margin", "least_win_rate", "gain_pairs_right"}),
    "ranking_swapped": (ARITHMETIC_REWARD, {"least_pairs_right"}),
}
"""Fault → the cell that it is planted in, and the promises of the task that it breaks."""


@pytest.fixture(scope="module")
def warmed_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model to start from is kept, which is trained without a fault."""
    return tmp_path_factory.mktemp("warmed_up")


def worse_with(cell: Cell, tmp_path: Path, *, program: Words = TRAINER, extra: Words = ()) -> set[str]:
    """The metrics that the comparison with the baseline calls worse, from one seed with a fault."""
    content = run(cell, 0, tmp_path / "run", target=os.environ["TEST_TARGET"], program=program, extra=extra)
    baselines = read(BASELINES)
    # Not as a verdict: a fault's figures must never get into a baseline or a history.
    (outputs() / f"{tmp_path.name}.txt").write_text(diff(baselines, cell.name, [content]) + "\n", encoding="utf-8")
    return {each.metric for each in comparisons(baselines[cell.name], [content]) if each.word == "worse"}


def tenth_of_the_learning_rate(cell: Cell) -> Words:
    """A setting that overrides the cell's."""
    last = len(cell.settings) - 1 - cell.settings[::-1].index("--learning-rate-peak")
    return "--learning-rate-peak", str(float(cell.settings[last + 1]) / 10)


def test_a_tenth_of_the_learning_rate_is_flagged(tmp_path: Path) -> None:
    assert worse_with(ARITHMETIC_FULL, tmp_path, extra=tenth_of_the_learning_rate(ARITHMETIC_FULL)) >= WORSE


def test_labels_shifted_by_one_are_flagged(tmp_path: Path) -> None:
    assert worse_with(ARITHMETIC_FULL, tmp_path, program=("tests.benchmark.planted", "labels_shifted")) >= WORSE


def test_without_a_fault_the_same_seed_is_not_flagged(tmp_path: Path) -> None:
    assert not worse_with(ARITHMETIC_FULL, tmp_path)


@pytest.mark.parametrize("fault", OTHERS)
def test_a_fault_of_what_teaches_is_flagged(fault: str, tmp_path: Path, warmed_up: Path) -> None:
    cell, broken = OTHERS[fault]
    program = ("tests.benchmark.planted", fault)
    content = run(cell, 0, tmp_path / "run", target=os.environ["TEST_TARGET"], program=program, warmed_up=warmed_up)
    assert content["status"] == "failed"
    assert {claim["name"] for claim in content["claims"] if not claim["holds"]} >= broken
