"""Every rank holds the whole model; gradients are added up once a step.

    gradient = Σ over ranks of the rank's gradient        no mean: each is already divided by the global divisor

Reduced here, in buckets of a fixed order, rather than by torch's DistributedDataParallel. That one averages, has to be
told of each microbatch whether it is the last, and changes its buckets after the first step, so that a resumed run
would add in another order than the one it continues. What is given up is overlap with the last backward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from training.config import Precision
from training.parallel.backend import Ranks
from training.parallel.single import Single
from training.parallel.world import World

T = TypeVar("T")

BYTES_PER_BUCKET = 2**25
"""Gradients that travel in one message: enough to fill a link, little beside the model."""


class Ddp(Single):
    """Replicas that add up their gradients."""

    def __init__(self, world: World, device: torch.device, precision: Precision) -> None:
        """One rank of `world`, whose process group has been joined."""
        super().__init__(device, precision)
        self.rank = world.rank
        self.num_ranks = world.num_ranks
        self._trained: list[nn.Parameter] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with rank 0's values in all that is trained."""
        self._trained = [each for each in model.parameters() if each.requires_grad]
        for each in self._trained:
            distributed.broadcast(each.detach(), src=0)
        return model

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds gradients of this rank; with the last microbatch, those of all ranks."""
        super().backward(loss, is_last=is_last)
        if is_last:
            self._add_up()

    def _add_up(self) -> None:
        # A weight may have a gradient on one rank alone (an expert that only its tokens chose). One that has none
        # anywhere keeps none, as in a single process: zeros would let weight decay move it.
        has = torch.tensor([each.grad is not None for each in self._trained], dtype=torch.int32)
        distributed.all_reduce(has, distributed.ReduceOp.MAX)
        gradients = []
        for each, is_present in zip(self._trained, has.tolist(), strict=True):
            if is_present:
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
                gradients.append(each.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            distributed.all_reduce(flat)
            sums = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, summed in zip(bucket, sums, strict=True):
                gradient.copy_(summed.view_as(gradient))

    def sum_over_ranks(self, value: float) -> float:
        """The sum of every rank's value, in float64."""
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        return _gathered(value, self.num_ranks, None)

    def apart(self, *, seconds_max: int) -> Ranks:
        """The same ranks, joined once more."""
        return _Apart(self.rank, self.num_ranks, seconds_max)

    def whole(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module | None:
        """The model, on rank 0."""
        return model if self.rank == 0 else None


class _Apart:
    """A process group of its own, in CPU memory: what is sent there waits for nothing that the steps send."""

    def __init__(self, rank: int, num_ranks: int, seconds_max: int) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds_max))

    def gather(self, value: T) -> list[T]:
        return _gathered(value, self.num_ranks, self._group)


def _gathered(value: T, num_ranks: int, group: distributed.ProcessGroup | None) -> list[T]:
    values: list[T] = [value] * num_ranks
    distributed.all_gather_object(values, value, group=group)
    return values


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in order, in lists of one type and of about `BYTES_PER_BUCKET`."""
    bucket: list[Tensor] = []
    num_bytes = 0
    for each in gradients:
        if bucket and (num_bytes >= BYTES_PER_BUCKET or each.dtype != bucket[0].dtype):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(each)
        num_bytes += each.nbytes
    if bucket:
        yield bucket
