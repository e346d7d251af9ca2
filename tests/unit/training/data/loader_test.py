"""A batch is a function of the step: every sample once an epoch, the same samples whatever the number of ranks."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import example, random_examples
from training.data.batch import Batch, Microbatch
from training.data.example import Example
from training.data.loader import Loader, fit, permutation
from training.errors import DataError


def numbered(lengths: Iterable[int]) -> list[Example]:
    """Examples whose every token id is the example's number, so that batches show what is in them."""
    return [example([number] * length) for number, length in enumerate(lengths)]


def samples_in(microbatches: Iterable[Microbatch]) -> Counter[int]:
    """How often each numbered example is there with its weights."""
    seen: Counter[int] = Counter()
    for microbatch in microbatches:
        starts = microbatch.document_starts_D1.tolist()
        for start, end in itertools.pairwise(starts):
            ids = microbatch.token_ids_T[start:end]
            assert (ids == ids[0]).all()
            if microbatch.weights_T[start:end].any():
                seen[int(ids[0])] += 1
    return seen


def loader(examples: list[Example], *, samples_per_step: int = 4, **changed: Any) -> Loader:
    return Loader(examples, samples_per_step=samples_per_step, tokens_per_rank_max=20, seed=7, **changed)


LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60)
def test_every_sample_once_an_epoch_on_any_number_of_ranks(
    lengths: list[int], samples_per_step: int, num_ranks: int, epoch: int
) -> None:
    examples = numbered(lengths)
    seen: Counter[int] = Counter()
    for rank in range(num_ranks):
        loads = loader(examples, samples_per_step=samples_per_step, rank=rank, num_ranks=num_ranks)
        for step in range(loads.steps_per_epoch):
            batch = loads.batch(epoch * loads.steps_per_epoch + step)
            assert batch.epoch == epoch
            assert all(microbatch.num_tokens <= 20 for microbatch in batch.microbatches)
            seen += samples_in(batch.microbatches)
    assert seen == Counter(range(len(examples)))


@given(LENGTHS, st.integers(1, 9), st.integers(2, 5), st.integers(0, 5))
@settings(max_examples=60)
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(
    lengths: list[int], samples_per_step: int, num_ranks: int, step: int
) -> None:
    examples = numbered(lengths)
    alone = loader(examples, samples_per_step=samples_per_step).batch(step)
    shared = [
        loader(examples, samples_per_step=samples_per_step, rank=rank, num_ranks=num_ranks).batch(step)
        for rank in range(num_ranks)
    ]
    together = sum((samples_in(batch.microbatches) for batch in shared), Counter())
    assert together == samples_in(alone.microbatches)
    assert {len(batch.microbatches) for batch in shared} == {len(shared[0].microbatches)}
    for batch in shared:
        assert counts(batch) == counts(alone)


def counts(batch: Batch) -> tuple[float, ...]:
    return batch.num_samples, batch.num_tokens, batch.num_weighted_tokens, batch.weight_sum


def test_counts_are_those_of_the_batchs_tensors() -> None:
    loads = Loader(random_examples([5, 9, 13, 4, 20, 2, 7]), samples_per_step=5, tokens_per_rank_max=20, seed=1)
    for step in range(4):
        batch = loads.batch(step)
        assert batch.num_samples == (5 if step % 2 == 0 else 2)
        assert batch.num_tokens == sum(microbatch.num_tokens for microbatch in batch.microbatches)
        weights = [microbatch.weights_T for microbatch in batch.microbatches]
        assert batch.num_weighted_tokens == sum(int((w > 0).sum()) for w in weights)
        assert batch.weight_sum == pytest.approx(sum(float(w.sum()) for w in weights))


def test_the_divisor_counts_every_prediction_and_no_other() -> None:
    """A pack of D documents has T - D predictions; counting T - 1 or T is the classical mistake."""
    batch = loader(numbered([5, 5, 5, 5])).batch(0)
    assert [microbatch.num_tokens for microbatch in batch.microbatches] == [20]
    assert batch.weight_sum == 20 - 4


@pytest.mark.parametrize("step", [0, 3, 4, 5, 11, 12, 57])
def test_resuming_at_a_step_gives_the_batch_that_an_uninterrupted_run_sees(step: int) -> None:
    """In the middle of a later epoch too, where a cursor counted inside the epoch goes wrong."""
    examples = numbered(range(2, 18))
    uninterrupted = loader(examples)
    for earlier in range(step):
        uninterrupted.batch(earlier)
    one, other = uninterrupted.batch(step), loader(examples).batch(step)
    assert counts(one) == counts(other)
    for a, b in zip(one.microbatches, other.microbatches, strict=True):
        assert a.token_ids_T.equal(b.token_ids_T)
        assert a.weights_T.equal(b.weights_T)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(permutation(50, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_batches_follow_the_epoch_and_the_seed() -> None:
    """The function above has orders to give; here the loader is seen to ask for them."""
    examples = numbered([3] * 12)

    def batches(seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
        loads = Loader(examples, samples_per_step=4, tokens_per_rank_max=20, seed=seed)
        steps = range(epoch * loads.steps_per_epoch, (epoch + 1) * loads.steps_per_epoch)
        return tuple(tuple(sorted(samples_in(loads.batch(step).microbatches))) for step in steps)

    assert len({batches(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_the_order_is_the_one_that_checkpoints_rely_on() -> None:
    """Golden: a checkpoint of today resumes on these samples for ever. Computed from the definition of SplitMix64."""
    mask = 2**64 - 1

    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    state = mixed((mixed(3) + 2) & mask)
    expected = sorted(range(100), key=lambda number: mixed((state + number) & mask))
    assert permutation(100, seed=3, epoch=2).tolist() == expected
    assert mixed(0) == 0xE220A8397B1DCDAF, "the first output of SplitMix64 from state 0, as published"


def test_positions_in_a_shuffled_order_are_uniform() -> None:
    """Over 2,000 epochs each of 10 samples comes first about 200 times; 5 standard deviations are 67."""
    first = Counter(int(permutation(10, seed=0, epoch=epoch)[0]) for epoch in range(2000))
    assert all(abs(count - 200) < 67 for count in first.values())
    assert len(first) == 10


def test_without_shuffling_the_order_is_the_files() -> None:
    loads = Loader(numbered([3] * 6), samples_per_step=2, tokens_per_rank_max=9, seed=0, shuffle=False)
    assert [sorted(samples_in(loads.batch(step).microbatches)) for step in range(4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_a_late_batch_costs_what_the_first_one_costs() -> None:
    loads = loader(numbered([4] * 1000))
    loads.batch(0)
    started = time.perf_counter()
    loads.batch(10**15)
    assert time.perf_counter() - started < 1.0


def test_more_samples_a_step_than_there_are_make_one_step_of_all() -> None:
    loads = loader(numbered([3, 4]), samples_per_step=100)
    assert loads.steps_per_epoch == 1
    assert loads.batch(5).num_samples == 2


def test_ranks_without_documents_get_a_filler_that_teaches_nothing() -> None:
    batches = [loader(numbered([8]), rank=rank, num_ranks=3).batch(0) for rank in range(3)]
    assert [bool(batch.microbatches[0].weights_T.any()) for batch in batches] == [True, False, False]
    assert all(batch.num_tokens == 8 for batch in batches)


def test_a_pack_is_split_rather_than_a_rank_left_idle() -> None:
    batches = [loader(numbered([5, 5, 5, 5]), rank=rank, num_ranks=2).batch(0) for rank in range(2)]
    assert [[m.num_tokens for m in batch.microbatches] for batch in batches] == [[10], [10]]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_without_packing_each_sample_is_alone_and_ranks_stay_in_step(num_ranks: int) -> None:
    loads = [loader(numbered([3, 4, 5]), rank=rank, num_ranks=num_ranks, packing=False) for rank in range(num_ranks)]
    batches = [each.batch(0) for each in loads]
    mine = [[m.num_tokens for m in batch.microbatches if m.weights_T.any()] for batch in batches]
    assert mine == ([[5, 4, 3]] if num_ranks == 1 else [[5, 3], [4]])
    assert {len(batch.microbatches) for batch in batches} == {3 if num_ranks == 1 else 2}


def test_an_empty_list_and_a_long_example_are_refused_before_the_first_step() -> None:
    with pytest.raises(DataError, match="no examples"):
        loader([])
    with pytest.raises(DataError, match=r"chat.jsonl:1: the sample has 21 tokens; expected at most 20"):
        loader(numbered([3, 21]))


def test_long_samples_stop_are_skipped_or_lose_their_end() -> None:
    examples = [example([1] * 4), example([2] * 9), example([3] * 9, [0] * 8 + [1])]
    with pytest.raises(DataError) as caught:
        fit(examples, tokens_per_sample_max=5)
    assert caught.value.got == "the sample has 9 tokens"
    skipped = fit(examples, tokens_per_sample_max=5, on_long_sample="skip")
    assert ([len(kept) for kept in skipped.examples], skipped.num_skipped, skipped.num_truncated) == ([4], 2, 0)
    assert skipped.skipped_reasons == {"too long": 2}
    cut = fit(examples, tokens_per_sample_max=5, on_long_sample="truncate")
    assert ([len(kept) for kept in cut.examples], cut.num_skipped, cut.num_truncated) == ([4, 5], 1, 1)
    assert cut.skipped_reasons == {"nothing to learn after truncation": 1}


def test_truncation_cuts_each_document_to_the_same_share() -> None:
    ids, weights = np.arange(9, dtype=np.int32), np.array([0, 1, 0, 1, 1, 0, 1, 1, 1], dtype=np.float32)
    columns = {"id_T": ids, "of_D": np.array([7, 8])}
    pair = Example(ids, weights, "pairs.jsonl:1", np.array([0, 2], dtype=np.int32), columns)
    cut = fit([pair], tokens_per_sample_max=6, on_long_sample="truncate").examples[0]
    assert cut.token_ids.tolist() == cut.columns["id_T"].tolist() == [0, 1, 2, 3, 4]
    assert cut.weights.tolist() == [0, 1, 0, 1, 1]
    assert (cut.document_starts.tolist(), cut.columns["of_D"].tolist()) == ([0, 2], [7, 8])
    with pytest.raises(DataError, match="nothing to learn after truncation"):
        fit([pair], tokens_per_sample_max=3, on_long_sample="truncate")


def test_nothing_left_is_refused() -> None:
    with pytest.raises(DataError, match=r"none of 1 samples fits \(\{'too long': 1\}\)"):
        fit([example([1] * 9)], tokens_per_sample_max=5, on_long_sample="skip")
