"""The arithmetic task: its work is right, its judge is strict, and no held-out problem is ever trained on."""

import random

import pytest

from tests.benchmark.tasks.arithmetic import (
    ARITHMETIC,
    SHARE_WRONG,
    Sum,
    arithmetic_data,
    final_number,
    is_right,
    judged,
    pair,
)
from training.rollout.judge import RewardModel
from training.rollout.rewards import load_rewards

SEEDS = (0, 1, 2, 3, 4, 2**32 - 1)


def test_a_sum_is_worked_from_the_right_with_its_carries() -> None:
    assert Sum(386, 457).question == "386+457"
    assert Sum(386, 457).answer == "6+7=13,8+5+1=14,3+4+1=8:843"
    assert Sum(999, 999).answer == "9+9=18,9+9+1=19,9+9+1=19:1998"


def test_every_column_and_every_sum_is_right() -> None:
    draw = random.Random(0)
    for _ in range(500):
        problem = Sum(draw.randint(100, 999), draw.randint(100, 999))
        work, _, total = problem.answer.partition(":")
        assert int(total) == problem.a + problem.b
        columns = [column.partition("=") for column in work.split(",")]
        assert all(sum(map(int, left.split("+"))) == int(right) for left, _, right in columns)
        digits = "".join(right[-1] for _, _, right in reversed(columns))
        assert str(problem.a + problem.b).endswith(digits), "the columns' last digits are the sum's"


def test_the_judge_wants_the_right_number_at_the_very_end() -> None:
    problem = judged(Sum(386, 457))
    assert problem.score("6+7=13,8+5+1=14,3+4+1=8:843") == 1.0
    assert problem.score(":843") == 1.0
    for wrong in ("6+7=13,8+5+1=14,3+4+1=8:842", "843", ":8430", ":843,", ":843 or :844", ""):
        assert problem.score(wrong) == 0.0, wrong
    assert final_number("1:2:3") == "3"


def test_a_wrong_working_carries_the_other_way_round() -> None:
    assert Sum(386, 457).worked(wrongly=True) == "6+7=13,8+5=13,3+4=7:733"
    assert Sum(121, 121).worked(wrongly=True) == "1+1=2,2+2+1=5,1+1+1=3:352"
    draw = random.Random(1)
    for _ in range(500):
        problem = Sum(draw.randint(100, 999), draw.randint(100, 999))
        assert judged(problem).score(problem.worked(wrongly=True)) == 0.0


def test_the_reward_is_the_judge() -> None:
    problem = Sum(386, 457)
    (named,) = load_rewards([ARITHMETIC.reward], RewardModel)
    assert named.function is is_right
    line = arithmetic_data(0).prompts[0]
    a, b = map(int, line["prompt"].split("+"))
    assert line["answer"] == a + b
    for text in (problem.answer, problem.worked(wrongly=True), ":843", "843", ""):
        assert is_right(problem.question, text, answer=843) == judged(problem).score(text)


def test_feedback_is_on_the_same_split() -> None:
    data = arithmetic_data(0)
    trained, held_out = ([line["messages"][0]["content"] for line in lines] for lines in (data.training, data.held_out))
    for lines in (data.prompts, data.pairs):
        assert [line["prompt"] for line in lines] == trained
    assert [line["messages"][0]["content"] for line in data.warm_up] == trained
    assert [line["prompt"] for line in data.held_out_pairs] == held_out
    assert data.held_out_pairs[0] == pair(Sum(*map(int, held_out[0].split("+"))))


def test_a_warm_up_shows_rather_wrong_workings_than_right_ones() -> None:
    data = arithmetic_data(0)
    wrong = sum(line != right for line, right in zip(data.warm_up, data.training, strict=True)) / len(data.training)
    assert wrong == pytest.approx(SHARE_WRONG, abs=0.02)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_held_out_problem_is_trained_on_in_either_order(seed: int) -> None:
    data = arithmetic_data(seed)
    trained, held_out = ([line["messages"][0]["content"] for line in lines] for lines in (data.training, data.held_out))
    mirrored = {"+".join(reversed(question.split("+"))) for question in trained}
    assert not set(held_out) & (set(trained) | mirrored)
    unordered = [tuple(sorted(question.split("+"))) for question in (*trained, *held_out)]
    assert len(set(unordered)) == len(unordered) == 8200, "no problem comes twice"


def test_the_held_out_problems_are_the_same_for_every_seed_and_the_training_problems_are_not() -> None:
    data = [arithmetic_data(seed) for seed in SEEDS]
    assert all(each.held_out == data[0].held_out for each in data)
    assert len({str(each.training) for each in data}) == len(SEEDS)
    assert [each.question for each in data[0].problems] == [line["messages"][0]["content"] for line in data[0].held_out]
    for problem, line in zip(data[0].problems, data[0].held_out, strict=True):
        assert problem.score(line["messages"][1]["content"]) == 1.0


def test_an_answer_fits_the_tokens_it_may_have() -> None:
    # A token is a byte; the longest work has a carry in every column, and one more token ends the turn.
    assert len(Sum(999, 999).answer) + 1 <= ARITHMETIC.num_new_tokens_max
