"""The rule that holds a result against its baseline: by tables, by simulation, on synthetic regressions."""

import math
import random
import statistics

import pytest

from tests.benchmark.rule import CONFIDENCE, WIDENED, compare, interval, t_quantile

GOOD = [0.985, 0.99, 0.97, 0.98, 0.995]


@pytest.mark.parametrize(
    ("confidence", "degrees", "tabled"),
    [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 4, 2.776), (0.99, 4, 4.604), (0.95, 9, 2.262), (0.99, 30, 2.750)],
)
def test_the_quantiles_are_those_of_printed_tables(confidence: float, degrees: int, tabled: float) -> None:
    assert t_quantile(confidence, degrees) == pytest.approx(tabled, abs=6e-4)


def test_a_95_percent_interval_covers_the_mean_95_times_in_a_hundred() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(4000):
        low, high = interval([draw.gauss(0.5, 0.1) for _ in range(5)])
        covered += low <= 0.5 <= high
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)


def test_the_tolerance_is_the_formula_of_the_docstring() -> None:
    found = compare("perplexity", [1.0, 1.1, 1.2], [1.1, 1.1])
    assert found.tolerance == pytest.approx(WIDENED * t_quantile(CONFIDENCE, 2) * 0.1 * math.sqrt(1 / 3 + 1 / 2))
    assert found.baseline == pytest.approx(1.1)
    assert found.word == "as before"


def test_unchanged_seeds_are_refused_less_often_than_the_confidence_allows() -> None:
    draw = random.Random(1)
    refused = 0
    for _ in range(2000):
        old, new = ([draw.gauss(3.0, 0.2) for _ in range(num)] for num in (5, 3))
        refused += not compare("perplexity", old, new).holds
    assert refused / 2000 < 1 - CONFIDENCE


@pytest.mark.parametrize("num_seeds", [1, 3, 5])
def test_a_regression_is_called_worse_and_a_leak_better(num_seeds: int) -> None:
    assert compare("exact_match", GOOD, [0.6] * num_seeds).word == "worse"
    assert compare("perplexity", [1.02, 1.03, 1.01], [1.9] * num_seeds).word == "worse"
    assert compare("exact_match", [0.40, 0.41, 0.39, 0.40, 0.42], [0.99] * num_seeds).word == "better"
    assert compare("perplexity", [9.0, 9.1, 9.2, 9.1, 9.0], [1.1] * num_seeds).word == "better"


def test_the_baselines_own_seeds_are_as_before() -> None:
    for num in range(1, len(GOOD) + 1):
        assert compare("exact_match", GOOD, GOOD[:num]).word == "as before"


def test_seeds_that_agree_by_luck_leave_room_for_a_problem_or_two() -> None:
    assert statistics.stdev([1.0] * 5) == 0
    assert compare("exact_match", [1.0] * 5, [0.99, 0.995, 1.0]).word == "as before"
    assert compare("exact_match", [1.0] * 5, [0.9, 0.9, 0.9]).word == "worse"


def test_a_line_of_the_table_says_from_what_to_what() -> None:
    assert str(compare("exact_match", GOOD, [0.5])).split() == [
        "exact_match",
        "0.9840",
        "→",
        "0.5000",
        "±",
        "0.0728",
        "worse",
    ]
