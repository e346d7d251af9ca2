"""A model that was shown right and wrong workings of sums learns from feedback which are right: rewards, or pairs.

One process for all three cells, as they start from the same models, one for each seed.
"""

from pathlib import Path

import pytest

from tests.benchmark.cells import ARITHMETIC_DPO, ARITHMETIC_GRPO, ARITHMETIC_REWARD
from tests.benchmark.holding import hold


@pytest.fixture(scope="module")
def warmed_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models to start from are kept."""
    return tmp_path_factory.mktemp("warmed_up")


def test_rewards_teach_which_way_is_right(tmp_path: Path, warmed_up: Path) -> None:
    hold(ARITHMETIC_GRPO, tmp_path, warmed_up=warmed_up)


def test_preferences_teach_which_way_is_right(tmp_path: Path, warmed_up: Path) -> None:
    hold(ARITHMETIC_DPO, tmp_path, warmed_up=warmed_up)


def test_a_reward_model_tells_right_workings_from_wrong_ones(tmp_path: Path, warmed_up: Path) -> None:
    hold(ARITHMETIC_REWARD, tmp_path, warmed_up=warmed_up)
