"""Which figure comes from what: answers and likelihoods made by hand, in place of a model."""

import math

import pytest

from tests.benchmark.likelihood import Prediction
from tests.benchmark.measure import NUM_SAMPLES, Measured, mark, metrics
from tests.benchmark.sampler import Completion
from tests.benchmark.tasks.arithmetic import Sum, judged

SURE, UNSURE, WRONG = Prediction(0.0, 1.0, True), Prediction(math.log(4), 0.5, False), Prediction(3.0, 0.9, False)


def test_an_answer_that_does_not_end_is_not_right() -> None:
    problem = judged(Sum(386, 457))
    assert mark(problem, Completion(":843", True)) == 1.0
    assert mark(problem, Completion(":843\n", True)) == 1.0
    assert mark(problem, Completion(":843", False)) == 0.0


def test_with_problems_marks_decide() -> None:
    base = Measured(scores=[0.0, 1.0, 0.0, 0.0], num_right=[], predicted=[[WRONG]] * 4)
    tuned = Measured(scores=[1.0, 1.0, 1.0, 0.0], num_right=[NUM_SAMPLES, 0], predicted=[[SURE], [UNSURE]])
    found = metrics(tuned, base)
    assert found == {
        "exact_match": 0.75,
        "pass_at_4": 0.5,
        "win_rate": (1 + 0.5 + 1 + 0.5) / 4,
        "perplexity": pytest.approx(2.0),
        "calibration_error": pytest.approx(0.25),
    }


def test_without_problems_the_likelihood_of_each_conversation_decides() -> None:
    # By the mean over its tokens: the longer conversation's sum is worse and its mean is better.
    base = Measured(scores=[], num_right=[], predicted=[[UNSURE], [UNSURE]])
    tuned = Measured(scores=[], num_right=[], predicted=[[UNSURE, SURE, UNSURE], [WRONG]])
    found = metrics(tuned, base)
    assert found["win_rate"] == 0.5
    assert found.keys() == {"win_rate", "perplexity", "calibration_error"}
