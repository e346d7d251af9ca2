"""The tensors of one optimizer step, as one rank sees them.

Shapes: T tokens of a microbatch, D documents in it.
"""
# ruff: noqa: N815 - tensors end in their shape, as fields too.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from training.data.example import Example
from training.data.sharing import shared_prompts


@dataclass(frozen=True, eq=False)
class Microbatch:
    """Documents of one forward and backward pass, laid end to end without padding."""

    token_ids_T: Tensor
    """int64"""
    positions_T: Tensor
    """int64, counting from 0 in each document, from the end of its prompt where another document has that"""
    weights_T: Tensor
    """float32, the weight of predicting each token; 0 where nothing comes before it"""
    document_starts_D1: Tensor
    """int32 [0, …, T], on the CPU wherever the rest is: attention needs the numbers, not the tensor"""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Those of its examples, end to end: a value of each token in a column whose name ends in _T, of each document in
    one whose name ends in _D"""
    prompts: Sequence[tuple[int, int]] = ()
    """Of each document, an earlier one whose first tokens come before its own, and how many of them; (0, 0) if nothing
    does. Empty: no document has left its prompt to another."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids_T)

    def to(self, device: torch.device | str) -> "Microbatch":
        """The same microbatch on a device; lengths stay on the CPU."""
        return Microbatch(
            self.token_ids_T.to(device, non_blocking=True),
            self.positions_T.to(device, non_blocking=True),
            self.weights_T.to(device, non_blocking=True),
            self.document_starts_D1,
            {name: column.to(device, non_blocking=True) for name, column in self.columns.items()},
            self.prompts,
        )


@dataclass(frozen=True)
class Batch:
    """One optimizer step's microbatches on this rank, and its counts over all ranks.

    The counts are known without talking: each rank knows all lengths and weights, so the divisor needs no collective.
    """

    microbatches: tuple[Microbatch, ...]
    """This rank's; every rank has the same number of them, so that collectives stay in step."""
    step: int
    """Counted from 0: the number of steps taken before this one."""
    epoch: int
    num_samples: int
    num_tokens: int
    num_weighted_tokens: int
    weight_sum: float
    """Sum of weights, the divisor of a mean over weighted tokens."""


def with_columns(batch: Batch, values: Mapping[str, float]) -> Batch:
    """The batch with more columns, in which every document has the same value: what a loss has to know of the step.

    Args:
        batch: of any step.
        values: by the name of the column, which ends in _D.
    """
    if not values:
        return batch
    return replace(
        batch,
        microbatches=tuple(
            replace(each, columns={**each.columns, **_alike(values, len(each.document_starts_D1) - 1)})
            for each in batch.microbatches
        ),
    )


def _alike(values: Mapping[str, float], num_documents: int) -> dict[str, Tensor]:
    assert all(name.endswith("_D") for name in values), list(values)
    return {name: torch.full((num_documents,), value) for name, value in values.items()}


def microbatch(examples: Sequence[Example], *, weighted: bool = True, share_prompts: bool = False) -> Microbatch:
    """The examples end to end, in the order given.

    Args:
        examples: at least one; all have the same columns.
        weighted: False zeroes all weights. Such a filler keeps a rank in step with the others and teaches nothing.
        share_prompts: documents leave out what an earlier one has before its first token that counts.
    """
    lengths = [len(example) for example in examples]
    offsets = np.cumsum([0, *lengths])
    starts = np.concatenate(
        [example.document_starts + offset for example, offset in zip(examples, offsets, strict=False)] + [offsets[-1:]]
    )
    document_lengths = np.diff(starts)
    positions = np.arange(offsets[-1]) - np.repeat(starts[:-1], document_lengths)
    token_ids = np.concatenate([example.token_ids for example in examples])
    weights = np.concatenate([example.weights for example in examples])
    columns = {name: np.concatenate([each.columns[name] for each in examples]) for name in examples[0].columns}
    prompts = shared_prompts(token_ids, weights, starts) if share_prompts else []
    if prompts:
        kept = np.ones(len(token_ids), dtype=bool)
        for start, (_, length) in zip(starts, prompts, strict=False):
            kept[start : start + length] = False
        token_ids, positions, weights = token_ids[kept], positions[kept], weights[kept]
        columns = {name: each[kept] if name.endswith("_T") else each for name, each in columns.items()}
        starts = starts - np.cumsum([0, *(length for _, length in prompts)])
    return Microbatch(
        token_ids_T=torch.from_numpy(token_ids.astype(np.int64)),
        positions_T=torch.from_numpy(positions.astype(np.int64)),
        weights_T=torch.from_numpy(weights if weighted else np.zeros_like(weights)),
        document_starts_D1=torch.from_numpy(starts.astype(np.int32)),
        columns={name: torch.from_numpy(each) for name, each in columns.items()},
        prompts=tuple(prompts),
    )


def unpacked(microbatch: Microbatch, said_TC: Tensor, examples: Sequence[Example]) -> list[Tensor]:
    """What was said of each token of the microbatch as rows of each example, [its tokens, C]; 0 for a prompt left out.

    Args:
        microbatch: made of the examples.
        said_TC: C numbers for each of its tokens.
        examples: in the same order.
    """
    documents = iter(said_TC.split_with_sizes(microbatch.document_starts_D1.diff().tolist()))
    rows = []
    for example in examples:
        row = said_TC.new_zeros(len(example), said_TC.shape[1])
        for end in (*example.document_starts[1:].tolist(), len(example)):
            own = next(documents)
            row[end - len(own) : end] = own
        rows.append(row)
    return rows
