import os
import random


def test_adds() -> None:
    assert 1 + 1 == 2


def test_subtracts() -> None:
    assert 2 - 1 == 1


class TestSeed:
    def test_draws_the_same_number_each_time(self) -> None:
        assert random.random() == random.Random(int(os.environ.get("PLUMBLINE_SEED", "0"))).random()
