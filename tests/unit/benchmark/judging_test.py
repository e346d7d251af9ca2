"""Every recipe of the benchmark is fed with its own samples, and its beginning and its end are those of its curve."""

import pytest

from tests.benchmark.cells import ARITHMETIC_DPO, ARITHMETIC_FULL, ARITHMETIC_GRPO, ARITHMETIC_REWARD
from tests.benchmark.judging import JUDGED_BY
from tests.benchmark.tasks.task import Data, Problem
from training.metrics.records import StepRecord, ValidationRecord

DATA = Data(
    training=[{"is": "training"}],
    held_out=[{"is": "held out"}],
    problems=[Problem("1+1", float)],
    prompts=[{"is": "prompts"}],
    warm_up=[{"is": "warm-up"}],
    pairs=[{"is": "pairs"}],
    held_out_pairs=[{"is": "held-out pairs"}],
)


def step(number: int, *, loss: float = 0.0, **metrics: float) -> StepRecord:
    """A record of a step, of which only the curve matters."""
    return StepRecord(number, 0, loss, 1.0, 1e-3, 8, 80, 40, 1, 0.1, metrics)


@pytest.mark.parametrize(
    ("recipe", "fed"),
    [
        ("sft", ["training", "held out", "training"]),
        ("grpo", ["prompts", None, "warm-up"]),
        ("dpo", ["pairs", "held-out pairs", "warm-up"]),
        ("reward", ["pairs", "held-out pairs", "warm-up"]),
    ],
)
def test_each_recipe_is_fed_with_its_own_samples(recipe: str, fed: list[str | None]) -> None:
    judge = JUDGED_BY[recipe]  # type: ignore[index]  # they are those of the table
    lines = [judge.training(DATA), judge.held_out(DATA), judge.warm_up(DATA)]
    assert [each[0]["is"] if each else None for each in lines] == fed


def test_of_a_recipe_with_validation_the_held_out_loss_is_to_fall() -> None:
    records = [ValidationRecord(0, 2.0, 9, 0.1), step(1, loss=5.0), step(2, loss=6.0), ValidationRecord(2, 1.5, 9, 0.1)]
    ends = JUDGED_BY["dpo"].ends(records)
    assert (ends.first, ends.last) == (2.0, 1.5)
    assert JUDGED_BY["dpo"].height(step(1, loss=5.0, reward_mean=0.5)) == 5.0


def test_of_a_recipe_with_rewards_what_is_missing_of_them_is_to_fall() -> None:
    # Twenty steps: a beginning is two of them. The loss, which says nothing here, rises.
    records = [step(number, loss=float(number), reward_mean=number / 20) for number in range(20)]
    ends = JUDGED_BY["grpo"].ends(records)
    assert ends.first == pytest.approx(1 - 0.5 / 20)
    assert ends.last == pytest.approx(1 - 18.5 / 20)
    assert JUDGED_BY["grpo"].height(records[5]) == 0.75


def test_a_cell_is_named_by_its_task_its_recipe_and_its_features() -> None:
    cells = ARITHMETIC_FULL, ARITHMETIC_GRPO, ARITHMETIC_DPO, ARITHMETIC_REWARD
    assert [cell.name for cell in cells] == [
        "arithmetic_full",
        "arithmetic_grpo_full",
        "arithmetic_dpo_full",
        "arithmetic_reward_full",
    ]
    # Curves of one lesson are held against each other by the history, whatever the features.
    assert len({cell.lesson for cell in cells}) == 4
