"""What documents have in common before the first token that counts is in a pack once; nothing else is left out."""

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import answered, example, random_examples
from training.data.batch import Microbatch, microbatch
from training.data.example import Example
from training.data.loader import Loader
from training.data.pack import pack
from training.data.pairs import joined
from training.data.sharing import Sizes

PROMPTS = st.sampled_from([[1, 2], [1, 2, 3], [4, 5, 6, 7, 8]])
ANSWERS = st.lists(st.tuples(PROMPTS, st.integers(1, 9)), min_size=1, max_size=25)


def examples_of(answers: list[tuple[list[int], int]]) -> list[Example]:
    """Completions that are told apart by their tokens, 100 and more."""
    return [answered(prompt, [[100 + number] * length])[0] for number, (prompt, length) in enumerate(answers)]


def weights_by_token(microbatches: list[Microbatch]) -> Counter[int]:
    """In quarters."""
    found: Counter[int] = Counter()
    for each in microbatches:
        for token, weight in zip(each.token_ids_T.tolist(), each.weights_T.tolist(), strict=True):
            found[token] += round(4 * weight)
    return found


def test_a_group_by_hand() -> None:
    group = [
        replace(
            each,
            columns={"said_T": np.arange(len(each), dtype=np.float32), "beta_D": np.array([number], dtype=np.float32)},
        )
        for number, each in enumerate(answered([5, 6, 7], [[8, 9], [10], [11, 12]]))
    ]
    other = replace(example([5, 6]), columns={"said_T": np.full(2, 7.0), "beta_D": np.full(1, 3.0)})
    packed = microbatch([group[0], group[1], other, group[2]], share_prompts=True)
    assert packed.token_ids_T.tolist() == [5, 6, 7, 8, 9, 10, 5, 6, 11, 12]
    assert packed.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 3, 4]
    assert packed.weights_T.tolist() == [0, 0, 0, 0.5, 0.75, 1, 0, 1, 1.5, 1.75]
    assert packed.document_starts_D1.tolist() == [0, 5, 6, 8, 10]
    assert packed.prompts == ((0, 0), (0, 3), (0, 0), (0, 3))
    assert packed.columns["said_T"].tolist() == [0, 1, 2, 3, 4, 3, 7, 7, 3, 4]
    assert packed.columns["beta_D"].tolist() == [0, 1, 3, 2]


def test_both_sides_of_a_pair_have_its_prompt() -> None:
    pair = joined(*answered([5, 6, 7], [[8, 9], [10]]))
    packed = microbatch([example([1, 2]), pair], share_prompts=True)
    assert packed.token_ids_T.tolist() == [1, 2, 5, 6, 7, 8, 9, 10]
    assert packed.positions_T.tolist() == [0, 1, 0, 1, 2, 3, 4, 3]
    assert packed.prompts == ((0, 0), (0, 0), (1, 3))
    assert Sizes([pair], share_prompts=True).together([0]) == 6


def test_where_nothing_is_in_common_the_pack_is_what_it_was() -> None:
    """A document in which nothing counts has no prompt, for it is not known where it would end."""
    silent = replace(joined(*answered([5, 6], [[7], [8]])), weights=np.array([0, 0, 1, 0, 0, 0], dtype=np.float32))
    for examples in ([*random_examples([4, 5, 6])], [silent]):
        plain, shared = microbatch(examples), microbatch(examples, share_prompts=True)
        assert plain.token_ids_T.tolist() == shared.token_ids_T.tolist()
        assert not any(length for _, length in shared.prompts)


def test_a_filler_has_the_layout_of_what_it_fills_in_for() -> None:
    group = answered([5, 6, 7], [[8, 9], [10]])
    filler = microbatch(group, weighted=False, share_prompts=True)
    assert filler.prompts == ((0, 0), (0, 3))
    assert not filler.weights_T.any()


@given(ANSWERS, st.integers(14, 40))
@settings(max_examples=60)
def test_packs_hold_every_example_once_and_what_they_have_room_for(
    answers: list[tuple[list[int], int]], capacity: int
) -> None:
    examples = examples_of(answers)
    sizes = Sizes(examples, share_prompts=True)
    packs = sizes.packs(capacity)
    assert Counter(number for each in packs for number in each) == Counter(range(len(examples)))
    assert packs == sorted(sorted(each) for each in packs)
    for each in packs:
        num_tokens = microbatch([examples[number] for number in each], share_prompts=True).num_tokens
        assert sizes.together(each) == num_tokens <= capacity


@given(ANSWERS, st.integers(14, 40))
@settings(max_examples=30)
def test_without_sharing_packs_are_those_of_the_lengths(answers: list[tuple[list[int], int]], capacity: int) -> None:
    examples = examples_of(answers)
    assert Sizes(examples, share_prompts=False).packs(capacity) == pack([len(each) for each in examples], capacity)


def test_a_group_stays_together_as_far_as_it_fits() -> None:
    """Packed by their lengths alone, groups would be torn apart, and each part would have the prompt."""
    groups = [each for first in (10, 20, 30) for each in answered([first] * 8, [[1, 2], [3, 4], [5, 6], [7, 8]])]
    assert Sizes(groups, share_prompts=True).packs(16) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert Sizes(groups, share_prompts=True).packs(12) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


@given(ANSWERS, st.integers(1, 4))
@settings(max_examples=40)
def test_each_rank_has_as_many_microbatches_and_all_have_every_weight(
    answers: list[tuple[list[int], int]], num_ranks: int
) -> None:
    examples = examples_of(answers)
    batches = [
        Loader(
            examples,
            samples_per_step=len(examples),
            tokens_per_rank_max=20,
            seed=0,
            rank=rank,
            num_ranks=num_ranks,
            share_prompts=True,
        ).batch(0)
        for rank in range(num_ranks)
    ]
    assert len({len(each.microbatches) for each in batches}) == 1
    microbatches = [each for batch in batches for each in batch.microbatches]
    assert all(each.num_tokens <= 20 for each in microbatches)
    assert weights_by_token(microbatches) == weights_by_token([microbatch(examples)])
    assert batches[0].num_tokens == sum(map(len, examples))
