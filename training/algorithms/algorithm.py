"""What an optimizer step needs to know of an algorithm: a divisor, and a sum to divide by it.

Shapes: T tokens of a microbatch, K positions whose logits are asked for, V vocabulary.
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


Logits = Callable[[Any, Tensor | None], Tensor]
"""logits(microbatch, at_K) → logits_KV: the model's scores for the token that *follows* each position in `at_K`, or
each of the T positions if None. The step passes `functools.partial(training.models.forward.logits, model)`."""

M = TypeVar("M", contravariant=True)
B = TypeVar("B", contravariant=True)


class Algorithm(Protocol[B, M]):
    """One way to learn.

    The step divides; an algorithm never does, for it sees one microbatch and the divisor belongs to the global batch.
    """

    def divisor(self, batch: B) -> float:
        """What the sum of all `loss_sum` of the global batch, over microbatches and ranks, is divided by, once."""
        ...

    def loss_sum(self, logits: Logits, microbatch: M) -> tuple[Tensor, dict[str, float]]:
        """The microbatch's part of the loss as a scalar *sum*, and sums of what else is worth a metric."""
        ...
