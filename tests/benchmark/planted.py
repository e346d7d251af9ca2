"""The trainer with a fault planted: `python -m tests.benchmark.planted FAULT sft …`.

A program of its own because faults are planted by replacing a function, and the benchmark trains in another process.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from training import run
from training.data.batch import Microbatch
from training.data.pairs import Pair
from training.models.forward import logits
from training.recipes import dpo, reward
from training.rollout import credit


def labels_shifted() -> None:
    """Each position learns the token after the next one: the shift is made twice, as when data come shifted already."""

    def shifted(model: nn.Module, microbatch: Microbatch, next_K: Tensor, *_: Any, **__: Any) -> Tensor:
        labels_K = microbatch.token_ids_T.roll(-1)[next_K]
        scores_KV = logits(model, microbatch, next_K - 1).float()
        return -torch.nn.functional.cross_entropy(scores_KV, labels_K, reduction="none")

    run.logprobs = shifted


def advantages_negated() -> None:
    """The better a completion does in its group, the less likely it becomes."""
    healthy = credit.group_advantages
    credit.group_advantages = lambda rewards_PN, **settings: -healthy(rewards_PN, **settings)


def pairs_swapped() -> None:
    """DPO learns what was rejected, as when a data set has its columns the other way round."""
    healthy = dpo.pair_example
    dpo.pair_example = lambda renderer, pair: healthy(renderer, swapped(pair))


def ranking_swapped() -> None:
    """The same for a reward model."""
    healthy = reward.pair_example
    reward.pair_example = lambda renderer, pair: healthy(renderer, swapped(pair))


def swapped(pair: Pair) -> Pair:
    """The pair with rejected in place of chosen."""
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


FAULTS: dict[str, Callable[[], None]] = {
    "labels_shifted": labels_shifted,
    "advantages_negated": advantages_negated,
    "pairs_swapped": pairs_swapped,
    "ranking_swapped": ranking_swapped,
}


def main() -> int:
    """Plants the fault that the first word names, and runs the command line on the others."""
    fault, *words = sys.argv[1:]
    FAULTS[fault]()
    from training.cli import main as trainer

    return trainer(words)


if __name__ == "__main__":
    sys.exit(main())
