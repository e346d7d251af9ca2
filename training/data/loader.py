"""Batches as a pure function of the step number: `batch(step)` reads nothing that an earlier batch left behind.

So a resumed run needs no replay and no saved position, and a global batch holds the same samples whatever the number
of ranks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.data.batch import Batch, microbatch
from training.data.example import Example
from training.data.sharing import Sizes
from training.errors import DataError, EmptyWeightsError

OnLongSample = Literal["stop", "skip", "truncate"]


@dataclass(frozen=True)
class Fitted:
    """The examples that are short enough, and a count of what was done to the others."""

    examples: list[Example]
    num_skipped: int = 0
    num_truncated: int = 0
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    """By reason: "too long", or "nothing to learn after truncation"."""


def fit(examples: Sequence[Example], *, tokens_per_sample_max: int, on_long_sample: OnLongSample = "stop") -> Fitted:
    """The examples of at most `tokens_per_sample_max` tokens; a longer one stops, is skipped, or loses its end.

    Of an example with several documents, those over an equal share of the tokens lose theirs: both sides of a pair keep
    the same prompt.

    Raises:
        DataError: an example is too long and `on_long_sample` is `stop`, or none is left.
    """
    kept: list[Example] = []
    reasons: Counter[str] = Counter()
    num_truncated = 0
    for example in examples:
        if len(example) <= tokens_per_sample_max:
            kept.append(example)
        elif on_long_sample == "skip":
            reasons["too long"] += 1
        elif on_long_sample == "truncate":
            try:
                kept.append(_truncated(example, tokens_per_sample_max))
                num_truncated += 1
            except EmptyWeightsError:
                reasons["nothing to learn after truncation"] += 1
        else:
            raise DataError(
                example.where,
                got=f"the sample has {len(example)} tokens",
                expected=f"at most {tokens_per_sample_max}",
                hint="raise --tokens-per-sample-max, or choose --on-long-sample=skip or truncate",
            )
    if not kept:
        raise DataError(
            "data",
            got=f"none of {len(examples)} samples fits ({dict(reasons)})",
            expected=f"a sample of at most {tokens_per_sample_max} tokens",
            hint="raise --tokens-per-sample-max",
        )
    return Fitted(kept, reasons.total(), num_truncated, dict(reasons))


def _truncated(example: Example, num_tokens: int) -> Example:
    """The example with the end of each document cut off that is over its share, which is the same for all of them."""
    ends = np.append(example.document_starts[1:], len(example))
    lengths = np.minimum(ends - example.document_starts, num_tokens // len(ends))
    kept = np.concatenate(
        [np.arange(start, start + length) for start, length in zip(example.document_starts, lengths, strict=True)]
    )
    starts = (np.cumsum(lengths) - lengths).astype(np.int32)
    weights = example.weights[kept]
    had, has = (
        np.add.reduceat(each, at) for each, at in ((example.weights, example.document_starts), (weights, starts))
    )
    if ((had > 0) & (has == 0)).any():
        raise EmptyWeightsError(
            example.where,
            got=f"of {len(example)} tokens, nothing to learn is left in a document of {num_tokens // len(ends)}",
            expected="something to learn in each",
            hint="raise --tokens-per-sample-max",
        )
    columns = {name: column[kept] if name.endswith("_T") else column for name, column in example.columns.items()}
    return Example(example.token_ids[kept], weights, example.where, starts, columns)


class Loader:
    """Gives the batch of any step.

    A step's samples are packed into microbatches of at most `tokens_per_rank_max` tokens; how many there are is the
    accumulation. Every rank gets the same number. Where that does not come out even, a pack is split in two, and if
    there is none to split, a rank gets a filler: a document without weights, which costs time and changes nothing.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        samples_per_step: int,
        tokens_per_rank_max: int,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        shuffle: bool = True,
        packing: bool = True,
        share_prompts: bool = False,
    ) -> None:
        """Takes examples that each fit `tokens_per_rank_max`.

        Args:
            examples: all samples, the same on every rank.
            samples_per_step: samples of one optimizer step over all ranks; an epoch's last step takes what is left.
            tokens_per_rank_max: tokens of one microbatch.
            seed: start of the order of samples; each epoch derives its own.
            rank: this process, from 0.
            num_ranks: processes that share each batch.
            shuffle: False keeps the order of the file in every epoch, as validation wants it.
            packing: False gives each sample a microbatch of its own.
            share_prompts: documents of a microbatch that begin with the same prompt have it once.

        Raises:
            DataError: there are no examples, or one is longer than `tokens_per_rank_max`.
        """
        assert samples_per_step >= 1
        assert 0 <= rank < num_ranks
        if not examples:
            raise DataError("data", got="no examples", expected="at least one", hint="is this the right file?")
        # A long example is refused here, before training, rather than in the step that would meet it.
        fit(examples, tokens_per_sample_max=tokens_per_rank_max, on_long_sample="stop")
        self.examples = examples
        self.samples_per_step = samples_per_step
        self.tokens_per_rank_max = tokens_per_rank_max
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.shuffle = shuffle
        self.packing = packing
        self.share_prompts = share_prompts
        self._order_of_epoch: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every sample is seen once."""
        return -(-len(self.examples) // self.samples_per_step)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs.

        Takes the same time at any step; the order of an epoch is drawn when a step first falls into it.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self.samples_per_step
        chosen = [self.examples[index] for index in self._order(epoch)[first : first + self.samples_per_step]]
        sizes = Sizes(chosen, share_prompts=self.share_prompts)
        packs = sizes.packs(self.tokens_per_rank_max) if self.packing else [[index] for index in range(len(chosen))]
        packs = _evened(packs, sizes, self.num_ranks)
        mine = packs[self.rank :: self.num_ranks]
        shortest = min(range(len(chosen)), key=lambda index: len(chosen[index]))
        return Batch(
            microbatches=tuple(
                microbatch(
                    [chosen[index] for index in members or [shortest]],
                    weighted=bool(members),
                    share_prompts=self.share_prompts,
                )
                for members in mine
            ),
            step=step,
            epoch=epoch,
            num_samples=len(chosen),
            num_tokens=sum(map(len, chosen)),
            num_weighted_tokens=sum(int(np.count_nonzero(example.weights)) for example in chosen),
            weight_sum=sum(example.weight_sum for example in chosen),
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._order_of_epoch is None or self._order_of_epoch[0] != epoch:
            num = len(self.examples)
            order = permutation(num, seed=self.seed, epoch=epoch) if self.shuffle else np.arange(num)
            self._order_of_epoch = (epoch, order)
        return self._order_of_epoch[1]


def _evened(packs: list[list[int]], sizes: Sizes, num_ranks: int) -> list[list[int]]:
    """The packs, fullest first, split or filled up with empty ones until every rank gets as many as the others.

    Fullest first, so that packs computed at the same time by different ranks are of about the same length.
    """
    packs = list(packs)
    while len(packs) % num_ranks:
        divisible = [members for members in packs if len(members) > 1]
        if not divisible:
            packs.append([])
            continue
        fullest = max(divisible, key=sizes.together)
        packs.remove(fullest)
        halves: tuple[list[int], list[int]] = ([], [])
        for index in sorted(fullest, key=lambda index: -sizes.together([index])):
            min(halves, key=sizes.together).append(index)
        packs += halves
    return sorted(packs, key=lambda members: -sizes.together(members))


def permutation(num: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The numbers below `num` in an order that depends on the arguments alone, int64 [num].

    Sorted by a hash of (seed, epoch, number), defined here in full (the finalizer of SplitMix64), so that a checkpoint
    resumes on the same samples whatever library version draws random numbers then.
    """
    state = _mixed(_mixed(np.array([seed], dtype=np.uint64)) + np.array([epoch], dtype=np.uint64))
    numbers: NDArray[np.uint64] = np.arange(num, dtype=np.uint64)
    return np.argsort(_mixed(numbers + state), kind="stable")


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
