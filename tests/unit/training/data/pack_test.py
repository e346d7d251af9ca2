"""Packs hold every document once, never overflow, and are as few as they can be where that is known."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.pack import pack
from training.errors import DataError


@st.composite
def lengths_and_capacity(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.integers(1, 300))
    longest = draw(st.integers(1, capacity))  # Low, many have the same length.
    return draw(st.lists(st.integers(1, longest), max_size=80)), capacity


@given(lengths_and_capacity())
def test_every_index_is_packed_exactly_once(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    counts = Counter(index for members in pack(lengths, capacity) for index in members)
    assert counts == Counter(range(len(lengths)))


@given(lengths_and_capacity())
def test_no_pack_exceeds_the_capacity_and_none_is_empty(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    assert all(0 < sum(lengths[index] for index in members) <= capacity for members in pack(lengths, capacity))


@given(lengths_and_capacity())
def test_no_two_packs_would_fit_into_one(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    sizes = sorted(sum(lengths[index] for index in members) for members in pack(lengths, capacity))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > capacity


@given(lengths_and_capacity())
def test_the_number_of_packs_keeps_johnsons_bound(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    least = -(-sum(lengths) // capacity)
    # 11/9 holds against the optimum, which is unknown; every optimum is at most twice this lower bound.
    assert least <= len(pack(lengths, capacity)) <= 2 * least + 1


@given(lengths_and_capacity())
def test_the_same_lengths_are_packed_the_same(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    packs = pack(lengths, capacity)
    assert packs == pack(list(lengths), capacity)
    assert packs == sorted(packs)
    assert all(members == sorted(members) for members in packs)


def reference(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing by its definition: look at every pack. Returns how full the packs are, sorted."""
    packs: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, size in enumerate(packs) if size + length <= capacity]
        if fitting:
            packs[max(fitting, key=lambda number: packs[number])] += length
        else:
            packs.append(length)
    return sorted(packs)


@given(lengths_and_capacity())
def test_packs_are_those_of_best_fit_decreasing_by_definition(case: tuple[list[int], int]) -> None:
    lengths, capacity = case
    assert sorted(sum(lengths[index] for index in members) for members in pack(lengths, capacity)) == reference(
        lengths, capacity
    )


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_complements_fill_every_pack(small: list[int]) -> None:
    """Optimum known in closed form: each length below half has its complement, so all packs are full."""
    lengths = [length for value in small for length in (value, 101 - value)]
    random.Random(0).shuffle(lengths)
    packs = pack(lengths, 101)
    assert len(packs) == len(small)
    assert all(sum(lengths[index] for index in members) == 101 for members in packs)


@given(st.integers(1, 20), st.integers(1, 10), st.integers(1, 9))
def test_equal_lengths_fill_packs_to_the_floor(num_packs: int, num_per_pack: int, length: int) -> None:
    packs = pack([length] * (num_packs * num_per_pack), num_per_pack * length + length - 1)
    assert [len(members) for members in packs] == [num_per_pack] * num_packs


def test_documents_above_half_the_capacity_are_alone() -> None:
    assert pack([6, 7, 8], 11) == [[0], [1], [2]]


def test_nothing_packs_to_nothing() -> None:
    assert pack([], 8) == []


def test_lengths_like_those_of_chats_need_at_most_one_pack_too_many() -> None:
    """Lognormal, mean about 450, as the docstring claims."""
    draw = random.Random(0)
    lengths = [min(4096, max(1, round(draw.lognormvariate(5.8, 0.8)))) for _ in range(5000)]
    packs = pack(lengths, 4096)
    assert len(packs) <= -(-sum(lengths) // 4096) + 1


@pytest.mark.parametrize("length", [0, -1, 9])
def test_a_length_that_no_pack_holds_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=f"document 1: {length} tokens; expected 1 to 8 tokens"):
        pack([3, length], 8)
