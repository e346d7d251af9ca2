"""Values by hand for each shape, and what must hold for every length of run."""

import math
import random

import pytest

from training.config import ScheduleShape
from training.schedule import Schedule, in_a_line


def rates(
    shape: ScheduleShape, num_steps: int, *, warmup: float = 0.0, decay: float = 0.2, floor: float = 0.0
) -> list[float]:
    schedule = Schedule(shape, 1.0, warmup, decay, floor)
    return [schedule.learning_rate(step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("wsd", [1, 1, 1, 0.5]),
    ],
)
def test_four_steps_by_hand(shape: ScheduleShape, expected: list[float]) -> None:
    assert rates(shape, 4, decay=0.5) == pytest.approx(expected, abs=1e-12)


def test_warm_up_climbs_in_equal_parts_to_the_peak_and_then_the_shape_begins() -> None:
    assert rates("linear", 8, warmup=0.5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25])
    assert rates("constant", 4, warmup=0.25) == pytest.approx([0.5, 1, 1, 1])


def test_floor_is_what_a_fall_tends_to() -> None:
    assert rates("linear", 4, floor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert rates("wsd", 4, decay=0.5, floor=0.5) == pytest.approx([1, 1, 1, 0.75])


def test_peak_scales_everything() -> None:
    halved = Schedule("cosine", 0.5, 0.1, 0.2, 0.1)
    whole = Schedule("cosine", 1.0, 0.1, 0.2, 0.1)
    assert [halved.learning_rate(step, 9) * 2 for step in range(9)] == [
        whole.learning_rate(step, 9) for step in range(9)
    ]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "wsd"])
def test_every_step_of_every_run_moves_and_none_exceeds_the_peak(shape: ScheduleShape) -> None:
    draw = random.Random(7)
    for _ in range(200):
        num_steps, warmup, decay = draw.randint(1, 50), draw.uniform(0, 0.6), draw.uniform(0, 0.4)
        values = rates(shape, num_steps, warmup=warmup, decay=decay, floor=draw.choice([0.0, 0.1]))
        assert all(0 < value <= 1 for value in values), (num_steps, warmup, decay)
        peak = values.index(max(values))
        assert values[:peak] == sorted(values[:peak]), "it climbs once"
        assert values[peak:] == sorted(values[peak:], reverse=True), "and falls once"


def test_a_line_has_its_two_ends_in_the_first_and_the_last_step() -> None:
    assert [in_a_line(0.1, 0.5, step, 5) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert [in_a_line(2.0, 1.0, step, 2) for step in range(2)] == [2.0, 1.0]
    assert in_a_line(0.1, 0.5, 0, 1) == 0.1
