"""What an optimizer step needs to know of an algorithm: a divisor, and a sum to divide by it.

Shapes: T tokens of a microbatch, K tokens whose log-probabilities are asked for.
"""
# ruff: noqa: N802 - tensors end in their shape, as properties too.

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor


class WeightedTokens(Protocol):
    """The part of a microbatch that a loss looks at."""

    @property
    def token_ids_T(self) -> Tensor:
        """int64."""
        ...

    @property
    def weights_T(self) -> Tensor:
        """float32, the weight of predicting each token."""
        ...


class Weighed(Protocol):
    """The part of a batch that a divisor looks at; counted over all ranks."""

    @property
    def weight_sum(self) -> float:
        """Sum of weights."""
        ...


Logprobs = Callable[[Any, Tensor, Tensor | None], Tensor]
"""logprobs(microbatch, next_K, weights_K) → logprobs_K: log p(x_t | x_<t) of each token t in `next_K`, float32. An
algorithm that knows what it will multiply each with, up to a common factor, says so in `weights_K`; one that does not,
as where a loss compares sums, passes None. How the model is run and how much of its scores is held at a time is no
matter of an algorithm: the step passes `functools.partial(training.models.forward.logprobs, model)`."""

M = TypeVar("M", contravariant=True)
B = TypeVar("B", contravariant=True)


class Algorithm(Protocol[B, M]):
    """One way to learn.

    The step divides; an algorithm never does, for it sees one microbatch and the divisor belongs to the global batch.
    """

    def divisor(self, batch: B) -> float:
        """What the sum of all `loss_sum` of the global batch, over microbatches and ranks, is divided by, once."""
        ...

    def loss_sum(self, logprobs: Logprobs, microbatch: M) -> tuple[Tensor, dict[str, float]]:
        """The microbatch's part of the loss as a scalar *sum*, and sums of what else is worth a metric."""
        ...
