"""The trainer with a fault planted: `python -m tests.benchmark.planted FAULT sft …`.

A program of its own because faults are planted by replacing a function, and the benchmark trains in another process.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from training import run
from training.data.batch import Microbatch
from training.models.forward import logits


def labels_shifted() -> None:
    """Each position learns the token after the next one: the shift is made twice, as when data come shifted already."""

    def shifted(model: nn.Module, microbatch: Microbatch, next_K: Tensor, *_: Any, **__: Any) -> Tensor:
        labels_K = microbatch.token_ids_T.roll(-1)[next_K]
        scores_KV = logits(model, microbatch, next_K - 1).float()
        return -torch.nn.functional.cross_entropy(scores_KV, labels_K, reduction="none")

    run.logprobs = shifted


FAULTS: dict[str, Callable[[], None]] = {"labels_shifted": labels_shifted}


def main() -> int:
    """Plants the fault that the first word names, and runs the command line on the others."""
    fault, *words = sys.argv[1:]
    FAULTS[fault]()
    from training.cli import main as trainer

    return trainer(words)


if __name__ == "__main__":
    sys.exit(main())
