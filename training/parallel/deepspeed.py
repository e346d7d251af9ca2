"""DeepSpeed's ZeRO: what ranks would hold alike is cut, stage by stage (arXiv 1910.02054).

    stage 1    moments: each rank updates its part of the weights, and all gather the result
    stage 2    and gradients: reduced with every microbatch, each rank keeps its part
    stage 3    and weights: gathered a layer at a time, as FSDP does

DeepSpeed shards, reduces and steps. What it would decide as well is taken from it: it is told of each microbatch
whether it is the last, as it steps and forgets gradients by a count of its own otherwise; it averages over ranks, so it
gets each loss times their number; the norm is taken from the gradients before it steps, not after; and its optimizer is
torch's AdamW, as it would compile one. Nothing here is compiled, ever.

The weights of a group lie end to end in one vector, and each rank has a run of it, with no regard to where a weight
ends. bf16 is the same autocast as everywhere, around DeepSpeed rather than by it.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from training.config import Precision
from training.imports import import_lean
from training.parallel.ddp import BYTES_PER_BUCKET, Ddp
from training.parallel.first import on_first
from training.parallel.shards import Run, cut
from training.parallel.world import World

HELD = -1
"""Number of a module that there is not, which DeepSpeed is told uses the weights that it is not to let go."""


class Deepspeed(Ddp):
    """Ranks that share a step by ZeRO."""

    def __init__(
        self,
        world: World,
        device: torch.device,
        precision: Precision,
        *,
        stage: int,
        offload: bool,
        seconds_max: int,
    ) -> None:
        """One rank of `world`, whose process group has been joined.

        Args:
            world: this process.
            device: where layers compute.
            precision: of forward and backward passes.
            stage: 1, 2 or 3.
            offload: moments, the weights they update, and in stage 3 the parts of weights that layers are gathered
                from, wait in CPU memory.
            seconds_max: a rank that waits longer for the others gives up with an error.
        """
        super().__init__(world, device, precision)
        self.loads_on = torch.device("cpu") if stage == 3 else device
        self.num_shards = world.num_ranks
        self._stage = stage
        self._offload = offload
        self._seconds_max = seconds_max
        self._engine: Any = None
        os.environ.setdefault("LOCAL_RANK", str(world.rank_here))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, whole until `wrap_optimizer`: an optimizer is made by the shapes of weights, parts have others."""
        return model

    def wrap_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """An optimizer that looks like the given one and steps by ZeRO; weights and moments have been cut."""
        groups = [dict(group) for group in optimizer.param_groups]
        with _quiet(self.device.type) as deepspeed:
            deepspeed.init_distributed()
            # The group of ranks that it would make for itself waits half an hour, whatever the limit.
            deepspeed.utils.groups._WORLD_GROUP = distributed.new_group(timeout=timedelta(seconds=self._seconds_max))
            if self._stage == 3:
                # Cuts one weight after another on its way to the device, where the whole model need not fit.
                deepspeed.zero.Init(module=model, config_dict_or_path=self._config())
            self._engine = deepspeed.initialize(model=model, optimizer=optimizer, config=self._config())[0]
        self._optimizer = ZeroOptimizer(self._engine.optimizer, groups, rank=self.rank)
        return self._optimizer

    def _config(self) -> dict[str, Any]:
        """What DeepSpeed is told. Counts of microbatches are given because it asks; `backward` overrules them."""
        zero: dict[str, Any] = {
            "stage": self._stage,
            "reduce_bucket_size": BYTES_PER_BUCKET // 4,
            # Small weights are cut like the others, so that what is true of a small model is true of a large one.
            "stage3_param_persistence_threshold": 0,
        }
        if self._offload:
            # Pinned memory is what copies to an accelerator want, and cannot be had where there is none.
            cpu = {"device": "cpu", "pin_memory": self.device.type != "cpu"}
            zero["offload_optimizer"] = cpu
            if self._stage == 3:
                zero["offload_param"] = cpu
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }

    @contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """In stage 3, gathers all weights, and cuts them again at the end."""
        weights: list[Any] = list(model.parameters()) if self._stage == 3 else []
        with _quiet(self.device.type) as deepspeed:
            holding = deepspeed.zero.GatheredParameters(weights)
        with holding:
            # After a module's pass DeepSpeed cuts its weights, unless another module still uses them.
            for each in weights:
                each.ds_active_sub_modules.add(HELD)
            try:
                yield
            finally:
                for each in weights:
                    each.ds_active_sub_modules.discard(HELD)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds gradients of this rank in stage 1 and of all ranks in the others; with the last, of all ranks."""
        # What the engine's own forward pass would do. The model is called without it, as that ends autocast.
        self._engine.optimizer.clear_backward_seen_flag()
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine._backward_prologue()
        self._engine.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm over all parts on all ranks."""
        norm = torch.nn.utils.get_total_norm(self._optimizer.gradients())
        square = norm.square()
        distributed.all_reduce(square)
        return square.sqrt()

    def clip_gradients(self, parameters: Iterable[nn.Parameter], norm_max: float, norm: Tensor) -> None:
        """Scales this rank's part of the gradients, by torch's formula."""
        coefficient = (norm_max / (norm + 1e-6)).clamp(max=1.0)
        for each in self._optimizer.gradients():
            each.mul_(coefficient.to(each.device))

    @torch.no_grad()
    def whole(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module | None:
        """On rank 0 a second model, in CPU memory, with the trained weights gathered into it one at a time."""
        target = on_first(self, build)
        places = dict(target.named_parameters()) if target else {}
        with _quiet(self.device.type) as deepspeed:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
                        if target:
                            places[name].copy_(parameter)
        return target


@dataclass(frozen=True)
class _Place:
    """Where this rank's run of a weight lies in the flat vectors that are updated."""

    flat: Tensor
    begin: int
    length: int

    def of(self, flat: Tensor) -> Tensor:
        """The run, in a vector laid out like `flat`."""
        return flat.narrow(0, self.begin, self.length)


class ZeroOptimizer(torch.optim.Optimizer):
    """ZeRO's optimizer seen as one over the weights of the model, of which each rank has runs."""

    def __init__(self, zero: Any, groups: list[dict[str, Any]], *, rank: int) -> None:
        """Looks up where each weight is.

        Args:
            zero: DeepSpeed's optimizer, of any stage.
            groups: what the wrapped optimizer had.
            rank: this process.
        """
        # Without torch's own __init__, which would make moments and hooks for parameters that are not there.
        self.param_groups = groups
        self.defaults = {}
        self._zero = zero
        self._is_stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
        self._flat: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._is_stage_3 else zero.single_partition_of_fp32_groups
        )
        self._places: dict[nn.Parameter, _Place] = {}
        for number, group in enumerate(groups):
            for parameter in group["params"]:
                place, run = self._find(parameter, number, rank)
                self._places[parameter] = place
                cut(parameter, run)

    def _find(self, parameter: Any, group: int, rank: int) -> tuple[_Place, Run]:
        if self._is_stage_3:
            number, begin, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = min(rank * length, parameter.ds_numel)
            # The last ranks' runs are padded to the length of the others.
            place = _Place(self._flat[number], begin, min(length, parameter.ds_numel - start))
            shape = parameter.ds_shape
        else:
            found = parameter._hp_mapping
            start = found.lp_fragment_address.start if found else 0
            address = found.hp_fragment_address if found else None
            place = _Place(self._flat[group], address.start if address else 0, address.numel if address else 0)
            shape = parameter.shape
        return place, Run(tuple(shape), start, place.of(place.flat.detach()))

    @property
    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:  # type: ignore[override]  # torch has an attribute
        """This rank's part of the moments of each weight, uncopied, and how often it was updated."""
        return {
            parameter: {
                # A count is the vector's, and would be one tensor under many names.
                key: place.of(value) if value.ndim else value.clone()
                for key, value in self._zero.optimizer.state[place.flat].items()
            }
            for parameter, place in self._places.items()
        }

    def gradients(self) -> list[Tensor]:
        """This rank's parts of the summed gradients, uncopied; they are there from a last backward pass to the step."""
        if self._flat[0].grad is not None:
            return [place.of(place.flat.grad) for place in self._places.values() if place.flat.grad is not None]
        return [each for group in self._zero.averaged_gradients.values() for each in group]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients."""
        self._zero.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure, no value
        """Updates this rank's part of the weights and gathers what all have updated."""
        for ours, theirs in zip(self.param_groups, self._zero.param_groups, strict=True):
            theirs["lr"] = ours["lr"]
        self._zero.step()

    def state_dict(self) -> dict[str, Any]:
        """Settings of the groups; what is in `state` is saved from there."""
        return {"state": {}, "param_groups": self.param_groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes moments, then has the weights agree with this rank's parts of them; all ranks call it.

        Args:
            state_dict: as of torch, with this rank's part of each weight's moments.
        """
        for number, place in enumerate(self._places.values()):
            whole = self._zero.optimizer.state[place.flat]
            for key, value in state_dict["state"][number].items():
                if value.ndim == 0:
                    whole[key] = value.clone()
                else:
                    if key not in whole:
                        whole[key] = torch.zeros_like(place.flat)
                    place.of(whole[key]).copy_(value)
        if self._is_stage_3:
            for number in range(len(self._flat)):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
        else:
            self._zero.update_lp_params()


def preload(device_type: str) -> None:
    """Imports DeepSpeed, which takes a second or more, so that ranks forked from this process need not.

    With what each of its engines imports once it is made.
    """
    with _quiet(device_type):
        import deepspeed.module_inject.auto_ep_layer  # noqa: F401 - imported so that forked ranks find it loaded


@contextmanager
def _quiet(device_type: str) -> Iterator[Any]:
    """DeepSpeed, imported; while it is entered, what is printed goes to stderr, and of its log errors alone do."""
    # It looks for accelerators by itself and would take one that the run was told not to use.
    os.environ["DS_ACCELERATOR"] = device_type
    with redirect_stdout(sys.stderr):
        import deepspeed

        # Each of its engines imports this, which is not used here and would be compiled.
        import_lean("deepspeed.runtime.zero.muon.muon_optimizer")
        logger = logging.getLogger("DeepSpeed")
        logger.setLevel(logging.ERROR)
        # Its own handler writes to stdout.
        logger.handlers.clear()
        logger.propagate = True
        # It calls what torch has renamed, hundreds of times.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        # Ranks on one machine would exchange tensors through a program that it compiles first.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        yield deepspeed
