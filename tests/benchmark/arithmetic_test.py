"""A tiny model from scratch learns column addition: with all weights, as an adapter, on two ranks."""

from pathlib import Path

from tests.benchmark.cells import ARITHMETIC_DDP, ARITHMETIC_FULL, ARITHMETIC_LORA
from tests.benchmark.holding import hold


def test_all_weights_learn_it_as_well_as_before(tmp_path: Path) -> None:
    hold(ARITHMETIC_FULL, tmp_path)


def test_an_adapter_learns_it_as_well_as_before(tmp_path: Path) -> None:
    hold(ARITHMETIC_LORA, tmp_path)


def test_two_ranks_learn_it_as_well_as_before(tmp_path: Path) -> None:
    hold(ARITHMETIC_DDP, tmp_path)
