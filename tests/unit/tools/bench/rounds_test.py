"""Contenders take turns, and ratios are those of one round."""

import pytest

from tools.bench.rounds import Spread, ratios, spread, turns


def test_every_second_round_goes_backwards_after_one_that_warms_up() -> None:
    expected = [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert list(turns(["a", "b"], num_rounds=2)) == expected


def test_a_spread_is_the_least_the_middle_and_the_greatest() -> None:
    assert spread([4.0, 1.0, 10.0]) == Spread(min=1.0, median=4.0, max=10.0)
    assert spread([4.0, 1.0]).median == 2.5


def test_no_figure_has_no_spread() -> None:
    with pytest.raises(ValueError):
        spread([])


def test_a_machine_that_slows_down_for_a_round_changes_no_ratio() -> None:
    # Half the time in each round, although the slow round of one is no faster than the quick round of the other.
    assert ratios([1.0, 8.0], against=[2.0, 16.0]) == [0.5, 0.5]


def test_a_round_that_lacks_a_figure_is_no_ratio() -> None:
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], against=[1.0])
