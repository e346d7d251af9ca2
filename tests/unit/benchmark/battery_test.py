"""Each metric against a case worked by hand, a closed form, or the experiment that it predicts."""

import itertools
import math
import random

import pytest

from tests.benchmark.battery import calibration_error, exact_match, pass_at_k, perplexity, win_rate


def test_exact_match_counts_full_marks_alone() -> None:
    assert exact_match([1.0, 0.99, 0.0, 1.0]) == 0.5


@pytest.mark.parametrize(("num_right", "k"), [*itertools.product(range(7), range(1, 7))])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_answer(num_right: int, k: int) -> None:
    answers = [True] * num_right + [False] * (6 - num_right)
    subsets = list(itertools.combinations(answers, k))
    assert pass_at_k(6, num_right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased_where_drawing_with_replacement_is_not() -> None:
    # A model that is right half of the time passes at 2 in 1 − 1/4 of the cases, however many samples judge it.
    num_samples, draw = 4, random.Random(0)
    rights = [sum(draw.random() < 0.5 for _ in range(num_samples)) for _ in range(20_000)]
    unbiased = sum(pass_at_k(num_samples, right, 2) for right in rights) / len(rights)
    biased = sum(1 - (1 - right / num_samples) ** 2 for right in rights) / len(rights)
    assert unbiased == pytest.approx(0.75, abs=0.005)
    assert biased < 0.70


def test_perplexity_of_a_uniform_choice_is_the_number_of_choices() -> None:
    assert perplexity([math.log(7)] * 5) == pytest.approx(7)
    assert perplexity([0.0, math.log(4)]) == pytest.approx(2), "the geometric mean over tokens"


def test_calibration_error_by_hand() -> None:
    # Two bins of ten: at 0.95, three of four right, off by 0.2; at 0.55, one of two, off by 0.05.
    confidences = [0.95, 0.95, 0.95, 0.95, 0.55, 0.55]
    is_right = [True, True, True, False, True, False]
    assert calibration_error(confidences, is_right, num_bins=10) == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)


def test_calibration_error_is_nought_for_a_model_that_is_sure_and_right_and_one_for_sure_and_wrong() -> None:
    assert calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert calibration_error([1.0, 1.0], [False, False]) == 1.0


def test_a_model_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    draw = random.Random(0)
    confidences = [draw.random() for _ in range(50_000)]
    honest = [draw.random() < confidence for confidence in confidences]
    assert calibration_error(confidences, honest) < 0.01
    boasting = [draw.random() < confidence / 2 for confidence in confidences]
    assert calibration_error(confidences, boasting) == pytest.approx(0.25, abs=0.01), "the mean of confidence / 2"


def test_win_rate_counts_ties_half() -> None:
    assert win_rate([1, 1, 0, 0.5], [0, 1, 1, 0.25]) == (1 + 0.5 + 0 + 1) / 4
    assert win_rate([0.3, 0.7], [0.3, 0.7]) == 0.5
