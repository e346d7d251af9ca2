"""What a step asks of the ranks that take it together.

The step owns accumulation and the divisor; a backend only shards, reduces and places, so every backend takes the same
step.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn


class Backend(Protocol):
    """One way for ranks to share a step."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def num_ranks(self) -> int:
        """Processes that take each step together."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this rank's tensors live."""
        ...

    def computing(self) -> AbstractContextManager[object]:
        """Context of every forward pass: the arithmetic it runs in."""
        ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds the gradients of one microbatch; reduces over ranks, if at all, with the last one of the step."""
        ...

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """L2 norm over the gradients of all trained weights on all ranks, as a scalar."""
        ...

    def sum_over_ranks(self, value: float) -> float:
        """The sum of every rank's value, on every rank."""
        ...
