"""Trains the same batches on several ranks and in one process, and says how far the two are apart.

One seed and one global batch, float32; each rank accumulates several microbatches of uneven numbers of weighted tokens.
Many kinds of run share one process group, since starting ranks takes longer than training a tiny model.
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import peft  # noqa: F401 - so that forked ranks need not spend seconds on it
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.support.examples import random_examples
from training.algorithms.sft import Sft
from training.config import LoraConfig, OptimizerKind
from training.data.batch import Batch
from training.data.loader import Loader
from training.metrics.records import StepRecord
from training.models.lora import add_adapter
from training.models.tiny import Architecture, tiny_model
from training.optimizer import optimizer_of
from training.parallel.backend import Backend
from training.parallel.ddp import Ddp
from training.parallel.deepspeed import Deepspeed, preload
from training.parallel.fsdp import Fsdp
from training.parallel.launch import launch
from training.parallel.shards import part_of, shape_of
from training.parallel.single import Single
from training.parallel.world import World, joined
from training.step import train_step

EXAMPLES = random_examples(
    [5, 19, 11, 3, 8, 24, 7, 13, 2, 16, 9, 4, 21, 6, 17, 12, 22, 10, 14, 18, 20, 15, 23, 9], seed=3
)
NUM_STEPS = 20
NUM_STEPS_PLANTED = 5
"""A bug shows at once."""
Bug = Literal["", "mean per rank", "each microbatch is the last", "a step with each microbatch"]
preload("cpu")


@dataclass(frozen=True)
class Kind:
    """What is trained, and how."""

    backend: str
    num_ranks: int = 2
    stage: int = 0
    architecture: Architecture = "llama"
    lora: bool = False
    offload: bool = False
    activation_checkpointing: bool = False
    keep_gathered: bool = False
    shard_ranks: int = 0
    optimizer: OptimizerKind = "adamw"
    bug: Bug = ""

    def __str__(self) -> str:
        said = [f"{self.backend}{self.stage or ''} x{self.num_ranks}", self.architecture]
        said += [f"in shards of {self.shard_ranks}"] if self.shard_ranks else []
        return " ".join([*said, *(name for name, value in vars(self).items() if value is True), self.bug]).rstrip()


def combinations(backend: str, *, offload: bool = True, **given: Any) -> list[Kind]:
    """Every combination of LoRA, offload and activation checkpointing, over the architectures in turn."""
    architectures = itertools.cycle(get_args(Architecture))
    features = itertools.product((False, True), (False, True) if offload else (False,), (False, True))
    return [replace(Kind(backend, 2, 0, next(architectures), *each), **given) for each in features]


@dataclass(frozen=True)
class Taken:
    """A step: what it said and what it left."""

    record: StepRecord
    weights: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Worst:
    """Largest relative difference from a single process of any step's loss, norm, and weights."""

    loss: float = 0.0
    norm: float = 0.0
    weights: float = 0.0

    @property
    def most(self) -> float:
        """Of the three."""
        return max(self.loss, self.norm, self.weights)

    @property
    def least(self) -> float:
        """Of the three."""
        return min(self.loss, self.norm, self.weights)


def compared(kinds: Sequence[Kind]) -> dict[Kind, Worst]:
    """How far each kind is from a single process. Must not be called in a process that has computed: ranks are forked.

    Args:
        kinds: all of the same number of ranks.
    """
    alone = {_alone(each) for each in kinds}
    references = launch(
        lambda world: {kind: list(taken(kind, Single("cpu", "fp32"))) for kind in alone}, 1, method="fork"
    )
    (num_ranks,) = {each.num_ranks for each in kinds}
    return launch(partial(_compare, kinds, references), num_ranks, method="fork")


def _alone(kind: Kind) -> Kind:
    """What one process trains to compare with."""
    return Kind("single", 1, architecture=kind.architecture, lora=kind.lora, optimizer=kind.optimizer)


def num_steps(kind: Kind) -> int:
    """Steps that a kind takes."""
    return NUM_STEPS_PLANTED if kind.bug else NUM_STEPS


def _compare(kinds: Sequence[Kind], references: dict[Kind, list[Taken]], world: World) -> dict[Kind, Worst]:
    found = {}
    with joined(world, "cpu", seconds_max=60) as device:
        for kind in kinds:
            reference = references[_alone(kind)][: num_steps(kind)]
            with _planted(kind.bug, backend_of(kind, world, device)) as backend:
                found[kind] = _worst(reference, taken(kind, backend))
            if world.rank == 0:
                print(f"{kind}: {found[kind]}", flush=True)
    return found


def _worst(reference: Sequence[Taken], ours: Iterator[Taken]) -> Worst:
    worst = Worst()
    for one, other in zip(reference, ours, strict=True):
        assert replace(one.record, num_microbatches=0, loss=0, gradient_norm=0) == replace(
            other.record, num_microbatches=0, loss=0, gradient_norm=0
        )
        assert one.weights.keys() == other.weights.keys()
        difference = max(np.abs(one.weights[name] - other.weights[name]).max() for name in one.weights)
        worst = Worst(
            max(worst.loss, abs(one.record.loss - other.record.loss) / one.record.loss),
            max(worst.norm, abs(one.record.gradient_norm - other.record.gradient_norm) / one.record.gradient_norm),
            max(worst.weights, float(difference / max(np.abs(each).max() for each in one.weights.values()))),
        )
    return worst


def backend_of(kind: Kind, world: World, device: torch.device) -> Backend:
    """The backend of one rank."""
    match kind.backend:
        case "ddp":
            return Ddp(world, device, "fp32")
        case "fsdp":
            num_shards = kind.shard_ranks or kind.num_ranks
            return Fsdp(
                world,
                device,
                "fp32",
                num_shards=num_shards,
                keep_gathered=kind.keep_gathered,
                offload=kind.offload,
            )
        case "deepspeed":
            return Deepspeed(world, device, "fp32", stage=kind.stage, offload=kind.offload)
    raise AssertionError(kind.backend)


class MeanPerRank(Sft):
    """Divides by the weights of this rank and averages over ranks, as many trainers do."""

    def __init__(self, num_ranks: int) -> None:
        """Of so many ranks."""
        self._num_ranks = num_ranks

    def divisor(self, batch: Any) -> float:
        """Of this rank, so that the sum over ranks is their mean."""
        return self._num_ranks * sum(float(each.weights_T.sum()) for each in batch.microbatches)


@contextmanager
def _planted(bug: Bug, backend: Any) -> Iterator[Backend]:
    """The backend with what goes wrong elsewhere when somebody else owns the boundary of a step."""
    backward = backend.backward

    def each_is_the_last(loss: Tensor, *, is_last: bool) -> None:
        backward(loss, is_last=True)

    def a_step_with_each(loss: Tensor, *, is_last: bool) -> None:
        backward(loss, is_last=True)
        if not is_last:
            backend.optimizer.step()
            backend.optimizer.zero_grad()

    if bug == "each microbatch is the last":
        backend.backward = each_is_the_last
    elif bug == "a step with each microbatch":
        backend.backward = a_step_with_each
    yield backend


def taken(kind: Kind, backend: Any) -> Iterator[Taken]:
    """The steps of one rank."""
    torch.set_num_threads(1)
    base = tiny_model(kind.architecture, seed=2)
    torch.manual_seed(5)
    model: nn.Module = add_adapter(base, LoraConfig(rank=4)) if kind.lora else base
    model.train()
    if kind.activation_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = backend.wrap(model)
    # With a smaller epsilon a gradient that is all rounding is a full update, whose sign is a matter of luck.
    made = optimizer_of(
        kind.optimizer, model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-4, fused=True, momentum=0.95
    )
    optimizer = backend.optimizer = backend.wrap_optimizer(model, made)
    batches = Loader(
        EXAMPLES, samples_per_step=16, tokens_per_rank_max=40, seed=1, rank=backend.rank, num_ranks=backend.num_ranks
    )
    algorithm = MeanPerRank(backend.num_ranks) if kind.bug == "mean per rank" else Sft()
    for number in range(num_steps(kind)):
        batch = batches.batch(number)
        _check_uneven(batch, backend)
        record = train_step(
            batch,
            model=model,
            algorithm=algorithm,
            optimizer=optimizer,
            backend=backend,
            learning_rate=1e-3,
            gradient_norm_max=0.5,
        )
        record = replace(record, seconds=0.0)
        assert set(map(str, backend.gather(record))) == {str(record)}, "the same record on every rank"
        yield Taken(record, _trained(model, backend))


def _trained(model: nn.Module, backend: Backend) -> dict[str, NDArray[np.float32]]:
    """The weights that are trained, each in one piece, joined from the parts of all ranks, which meet once for all."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    mine = {name: part_of(each).numpy().reshape(-1) for name, each in trained.items()}
    parts = backend.gather(mine)[: backend.num_shards]
    return {
        name: np.concatenate([part[name] for part in parts]).reshape(shape_of(each)) for name, each in trained.items()
    }


def _check_uneven(batch: Batch, backend: Backend) -> None:
    """The batch is worth a test of divisors: microbatches and ranks differ in what they weigh."""
    mine = [float(each.weights_T.sum()) for each in batch.microbatches]
    everyone = backend.gather(mine)
    if batch.epoch == 0 and batch.num_samples == 16:
        assert len(mine) >= 2
        assert statistics.pstdev(weight for rank in everyone for weight in rank) > 1
        assert backend.num_ranks == 1 or statistics.pstdev(map(sum, everyone)) > 0
