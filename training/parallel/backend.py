"""What a step asks of the ranks that take it together.

The step owns accumulation and the divisor; a backend only shards, reduces and places, so every backend takes the same
step. Gradients of ranks are added, never averaged: each is already divided by the divisor of the global batch.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that take part, and how they tell each other something."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def num_ranks(self) -> int:
        """Processes that take each step together."""
        ...

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank. All must call it, so it is a barrier as well."""
        ...


class Alone:
    """One process, which has nobody to tell."""

    rank = 0
    num_ranks = 1

    def gather(self, value: T) -> list[T]:
        """The value."""
        return [value]

    def apart(self, *, seconds_max: int) -> Ranks:
        """Itself: it has no messages that could meet."""
        return self


class Backend(Ranks, Protocol):
    """One way for ranks to share a step."""

    def apart(self, *, seconds_max: int) -> Ranks:
        """The same ranks with messages of their own, for a thread that works beside the steps. All must call it.

        Args:
            seconds_max: a rank that waits longer for the others gives up with an error.
        """
        ...

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors live."""
        ...

    @property
    def loads_on(self) -> torch.device:
        """Where the model is loaded, before `wrap` puts it or its parts on the device."""
        ...

    @property
    def num_shards(self) -> int:
        """Ranks, beginning with rank 0, that hold a copy of the weights between them; 1 if each holds all of them."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as this backend trains it. Called once, before the optimizer is made; names stay as they are."""
        ...

    def wrap_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer as this backend steps it. Called once, with what `wrap` returned and an optimizer over it."""
        ...

    def computing(self) -> AbstractContextManager[object]:
        """Context of every forward pass: the arithmetic it runs in."""
        ...

    def gathered(self, model: nn.Module) -> AbstractContextManager[object]:
        """Context of many passes without a gradient, within which each rank has all weights. All must enter it.

        Args:
            model: what `wrap` returned; its weights stay as they are meanwhile.
        """
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds the gradients of one microbatch; after the last one of the step they are sums over all ranks."""
        ...

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """L2 norm over the gradients of all trained weights on all ranks, as a scalar."""
        ...

    def clip_gradients(self, parameters: Iterable[nn.Parameter], norm_max: float, norm: Tensor) -> None:
        """Scales the gradients down to `norm_max`, if `norm`, which `gradient_norm` returned, is above it."""
        ...

    def sum_over_ranks(self, value: float) -> float:
        """The sum of every rank's value, the same on every rank."""
        ...

    def whole(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module | None:
        """On rank 0 the model in one piece, to be exported; None on the others. All must call it.

        Args:
            model: what `wrap` returned.
            build: makes the model anew, untrained; called on rank 0 if the trained one is in pieces.
        """
        ...
