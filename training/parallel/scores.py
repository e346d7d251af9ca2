"""What a model says of many examples, the work shared by the ranks: log-probabilities of a reference, say, or values.

Shapes: T tokens of an example, K of them that count, C numbers that the model says of one.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.algorithms.algorithm import Logprobs
from training.data.batch import microbatch, unpacked
from training.data.example import Example
from training.data.sharing import Sizes
from training.models.forward import evaluating
from training.parallel.backend import Backend

S = TypeVar("S")


def scores(
    examples: Sequence[Example],
    answers: Logprobs,
    *,
    model: nn.Module,
    backend: Backend,
    tokens_per_rank_max: int | None,
    share_prompts: bool,
    keep: Callable[[Example, NDArray[np.float32]], S],
) -> list[S]:
    """What is kept of each example, in their order, on every rank; all must call it. Dropout and noise are off.

    Packs do not depend on the number of ranks, and every rank runs the model equally often: one that has no pack left
    runs the last one once more, since the others may wait for its part of the weights.

    Args:
        examples: as they will be trained on.
        answers: the model's, as an algorithm gets them: a number or several of each token.
        model: theirs.
        backend: whose ranks share the work.
        tokens_per_rank_max: tokens of a pack; None runs each example by itself.
        share_prompts: documents of a pack that begin with the same prompt have it computed once.
        keep: what ranks tell each other, from said_TC: 0 at tokens that do not count.
    """
    packs = [[number] for number in range(len(examples))]
    if tokens_per_rank_max is not None and examples:
        packs = Sizes(examples, share_prompts=share_prompts).packs(tokens_per_rank_max)
    mine: dict[int, S] = {}
    for first in range(0, len(packs), backend.num_ranks):
        numbers = packs[min(first + backend.rank, len(packs) - 1)]
        members = [examples[number] for number in numbers]
        here = microbatch(members, share_prompts=share_prompts).to(backend.device)
        next_K = here.weights_T[1:].nonzero().squeeze(1) + 1
        with evaluating(model), torch.no_grad(), backend.computing():
            said_K = answers(here, next_K, None).float()
        said_KC = said_K if said_K.ndim == 2 else said_K[:, None]
        said_TC = said_KC.new_zeros(here.num_tokens, said_KC.shape[1]).index_copy(0, next_K, said_KC)
        parts = unpacked(here, said_TC.cpu(), members)
        for number, each, part in zip(numbers, members, parts, strict=True):
            mine[number] = keep(each, part.numpy())
    of_all: dict[int, S] = {}
    # Rank 0 last: what two have computed is the same up to rounding, and all must have the same.
    for of_rank in reversed(backend.gather(mine)):
        of_all |= of_rank
    return [of_all[number] for number in range(len(examples))]
