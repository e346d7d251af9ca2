"""A microbatch is its documents end to end: positions restart, starts accumulate, nothing else changes."""

from dataclasses import replace

import numpy as np
import torch

from tests.support.examples import example, random_examples
from training.data.batch import microbatch, with_columns
from training.data.example import Example
from training.data.loader import Loader


def test_three_documents_by_hand() -> None:
    packed = microbatch([example([5, 6, 7]), example([8, 9], [0, 0.5]), example([1, 2, 3], [0, 0, 1])])
    assert packed.token_ids_T.tolist() == [5, 6, 7, 8, 9, 1, 2, 3]
    assert packed.positions_T.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert packed.weights_T.tolist() == [0, 1, 1, 0, 0.5, 0, 0, 1]
    assert packed.document_starts_D1.tolist() == [0, 3, 5, 8]
    assert packed.num_tokens == 8


def test_documents_inside_a_block_restart_too() -> None:
    ids, weights = np.arange(5, dtype=np.int32), np.array([0, 1, 0, 1, 1], dtype=np.float32)
    block = Example(ids, weights, "book.jsonl:1", np.array([0, 2], dtype=np.int32))
    packed = microbatch([example([7, 7]), block])
    assert packed.positions_T.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert packed.document_starts_D1.tolist() == [0, 2, 4, 7]


def test_dtypes_are_those_that_torch_takes_for_indices() -> None:
    packed = microbatch(random_examples([3, 4])).to("cpu")
    dtypes = [t.dtype for t in (packed.token_ids_T, packed.positions_T, packed.weights_T, packed.document_starts_D1)]
    assert dtypes == [torch.int64, torch.int64, torch.float32, torch.int32]


def test_a_filler_has_the_tokens_and_no_weight() -> None:
    filler = microbatch(random_examples([6]), weighted=False)
    assert filler.num_tokens == 6
    assert not filler.weights_T.any()


def test_a_microbatch_shares_no_memory_with_its_examples() -> None:
    source = example([1, 2])
    microbatch([source]).weights_T.fill_(9)
    assert source.weights.tolist() == [0, 1]


def test_a_column_of_the_step_is_the_same_for_every_document_of_every_microbatch() -> None:
    pair = replace(example([5, 6, 7, 8], [0, 1, 0, 1]), document_starts=np.array([0, 2], dtype=np.int32))
    own = [replace(each, columns={"own_D": np.zeros(2)}) for each in (pair, pair)]
    batch = Loader(own, samples_per_step=2, tokens_per_rank_max=4, seed=0).batch(0)
    assert with_columns(batch, {}) is batch
    filled = with_columns(batch, {"beta_D": 0.5})
    assert [{name: column.tolist() for name, column in each.columns.items()} for each in filled.microbatches] == [
        {"own_D": [0, 0], "beta_D": [0.5, 0.5]}
    ] * 2
    assert (filled.step, filled.num_samples) == (batch.step, batch.num_samples)
