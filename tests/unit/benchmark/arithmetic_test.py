"""The arithmetic task: its work is right, its judge is strict, and no held-out problem is ever trained on."""

import random

import pytest

from tests.benchmark.tasks.arithmetic import ARITHMETIC, Sum, arithmetic_data, final_number, judged

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
