"""Every rank holds a part of each weight, of its gradient and of its moments (FSDP2; arXiv 2304.11277).

A layer's weights are gathered when it computes and let go of afterwards. Gradients are reduced to the parts with every
microbatch: waiting for the last one would send less, and hold the gradients of the whole model on every rank, which is
what sharding is there to avoid. They are added, not averaged, as the divisor is the global one.

bf16 is the same autocast as everywhere, over weights gathered in fp32, so that all backends round alike.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from training.config import Precision
from training.parallel.ddp import Ddp
from training.parallel.first import on_first
from training.parallel.world import World


class Fsdp(Ddp):
    """Shards of one model."""

    def __init__(
        self,
        world: World,
        device: torch.device,
        precision: Precision,
        *,
        num_shards: int,
        keep_gathered: bool,
        offload: bool,
        seconds_max: int,
    ) -> None:
        """One rank of `world`, whose process group has been joined.

        Args:
            world: this process.
            device: where layers compute.
            precision: of forward and backward passes.
            num_shards: parts of one copy of the weights; with fewer than there are ranks, each group of so many ranks
                has a copy, and groups add up what their ranks have reduced.
            keep_gathered: keep a layer's weights from its forward to its backward pass: more memory, one message less.
            offload: parts of weights, gradients and moments wait in CPU memory.
            seconds_max: a rank that waits longer for others of its group gives up with an error.
        """
        super().__init__(world, device, precision)
        # Moved to the device a layer at a time, so that the whole model need not fit there.
        self.loads_on = torch.device("cpu")
        self.num_shards = num_shards
        self._keep_gathered = keep_gathered
        self._offload = offload
        self._seconds_max = seconds_max
        self._is_gathered = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """The same model, its weights cut along their first dimension: each layer by itself, then what is left."""
        super().wrap(model)
        mesh = self._mesh()
        # Pinned memory is what copies to an accelerator want, and cannot be had where there is none.
        cpu = CPUOffloadPolicy(pin_memory=self.device.type != "cpu")
        policy = cpu if self._offload else OffloadPolicy()
        names = set(getattr(model, "_no_split_modules", None) or ())
        layers = [each for each in model.modules() if type(each).__name__ in names]
        for module in [*layers, model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=not self._keep_gathered, offload_policy=policy)
        for part in _parts(model):
            part.set_gradient_divide_factor(1.0)
            # Otherwise a factor of 1 becomes an operation that only NCCL has.
            part.set_force_sum_reduction_for_comms(True)
        if self._keep_gathered:
            model.register_forward_hook(self._let_go)
        return model

    def _mesh(self) -> DeviceMesh:
        """The ranks by the part they hold, and before that by the copy it is of if there are several."""
        device_type = self.device.type
        if self.num_shards == self.num_ranks:
            return init_device_mesh(device_type, (self.num_ranks,), mesh_dim_names=("shard",))
        ranks = torch.arange(self.num_ranks).view(-1, self.num_shards)
        # Groups that a mesh makes for itself would wait for half an hour, whatever the limit.
        copy, shard = (
            distributed.new_subgroups_by_enumeration(  # type: ignore[no-untyped-call]  # torch gives it no types
                each.tolist(), timeout=timedelta(seconds=self._seconds_max)
            )[0]
            for each in (ranks.T, ranks)
        )
        return DeviceMesh.from_group([copy, shard], device_type, ranks, mesh_dim_names=("copy", "shard"))

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """Gathers all weights, and cuts them again at the end."""
        self._is_gathered = True
        for module in _parts(model):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            self._is_gathered = False
            for module in _parts(model):
                module.set_reshard_after_forward(not self._keep_gathered, recurse=False)
                module.reshard()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds gradients of all ranks; FSDP reduces them as it goes."""
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm over all parts on all ranks."""
        norm = super().gradient_norm(parameters)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def whole(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module | None:
        """On rank 0 a second model, in CPU memory, with the trained weights gathered into it one at a time."""
        target = on_first(self, build)
        places = dict(target.named_parameters()) if target else {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert isinstance(parameter, DTensor), name
                value = parameter.full_tensor()
                if target:
                    places[name].copy_(value)
        return target

    def _let_go(self, model: nn.Module, *_: Any) -> None:
        """Cuts weights again after a pass that no backward pass will follow, which is what else would have done it.

        Gathered weights are not those that a checkpoint is read into and written from.
        """
        if not torch.is_grad_enabled() and not self._is_gathered:
            for module in _parts(model):
                module.reshard()


def _parts(model: nn.Module) -> list[FSDPModule]:
    """The modules whose weights are gathered together."""
    return [each for each in model.modules() if isinstance(each, FSDPModule)]
