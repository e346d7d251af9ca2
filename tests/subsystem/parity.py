"""Trains the same batches on several ranks and in one process, and says how far the two are apart.

One seed and one global batch; each rank accumulates several microbatches of uneven numbers of weighted tokens, and each
step clips its gradients. A tensor's difference is divided by its own largest entry.
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
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.support.examples import random_examples
from tests.support.tolerances import RANKS_FP32_RELATIVE, RANKS_FRESH_RELATIVE, RANKS_TENSOR_RELATIVE
from training.algorithms.sft import Sft
from training.config import LoraConfig, OptimizerKind, Precision
from training.data.batch import Batch
from training.data.loader import Loader
from training.imports import import_lean
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
SAMPLES_PER_STEP = 12
TOKENS_PER_RANK_MAX = {1: 60, 2: 50, 3: 38, 4: 30}
"""By the number of ranks: two microbatches of each rank at each step, and of one alone three or four."""
TOKENS_BF16_MAX = 30
"""In bf16 the gradient of each microbatch is rounded, so that they are as small with one rank as with two."""
NUM_STEPS = 20
NUM_STEPS_BRIEF = 5
"""Of kinds beside the combinations of backend, ranks, features and architecture; and a bug shows at once."""
NORM_MAX = 0.5
"""Each step's norm is above it, so that each is clipped. Seen: 1.7 and more."""
EPSILON = 1e-4
"""With a smaller one a gradient that is all rounding is a full update, whose sign is a matter of luck."""
LEARNING_RATE = 1e-3
Bug = Literal["", "mean per rank", "each microbatch is the last", "a step with each microbatch"]
preload("cpu")
import_lean("peft")  # Here, so that forked processes need not spend seconds on it.


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
    precision: Precision = "fp32"
    epsilon: float = EPSILON
    bug: Bug = ""
    num_steps: int = NUM_STEPS

    def __str__(self) -> str:
        said = [f"{self.backend}{self.stage or ''} x{self.num_ranks}", self.architecture]
        said += [f"in shards of {self.shard_ranks}"] if self.shard_ranks else []
        said += [self.optimizer] if self.optimizer != "adamw" else []
        said += [self.precision] if self.precision != "fp32" else []
        said += [f"epsilon {self.epsilon:g}"] if self.epsilon != EPSILON else []
        return " ".join([*said, *(name for name, value in vars(self).items() if value is True), self.bug]).rstrip()


brief = partial(Kind, num_steps=NUM_STEPS_BRIEF)

FEATURES = ("lora", "offload", "activation_checkpointing")
Half = Literal["even", "odd"]
"""Of the combinations of FEATURES, those of an even or of an odd number of them: in each half are any two of them
together, one without the other, and both left out."""
HALVES: tuple[Half, ...] = get_args(Half)


def combinations(
    backend: str, halves: Sequence[Half] = HALVES, *, offload: bool = True, turned: int = 0, **given: Any
) -> list[Kind]:
    """Combinations of LoRA, offload and activation checkpointing, each half of them on all architectures.

    A combination and its opposite are of one architecture, so both halves have each architecture with and without each
    of the three.

    Args:
        backend: which one.
        halves: the combinations that are wanted.
        offload: False leaves it out, and each of the four other combinations is of two architectures.
        turned: by how many architectures to begin later, so that backends do not have the same ones.
        given: what else is said of each kind.
    """
    architectures = get_args(Architecture)
    kinds = []
    for number, chosen in enumerate(itertools.product((False, True), repeat=len(FEATURES))):
        lora, other, checkpointing = chosen
        # The opposite of combination n is 7 - n.
        architecture = architectures[(min(number, 7 - number) + turned) % len(architectures)]
        if HALVES[sum(chosen) % 2] in halves:
            kind = Kind(backend, 2, 0, architecture, lora, other and offload, checkpointing)
            kinds.append(replace(kind, **given))
    return kinds


@dataclass(frozen=True)
class Taken:
    """A step: what it said and what it left."""

    record: StepRecord
    weights: dict[str, NDArray[np.float32]]
    fresh: frozenset[str]
    """Weights that were all zero before the first step."""


@dataclass(frozen=True)
class Worst:
    """Largest relative difference from a single process of any step's loss, norm, and any tensor's weights."""

    loss: float = 0.0
    norm: float = 0.0
    weights: float = 0.0
    """But for those that were zero at first."""
    fresh: float = 0.0
    """Of those."""

    @property
    def least(self) -> float:
        """Of the first three."""
        return min(self.loss, self.norm, self.weights)

    def check(
        self,
        relative: float = RANKS_FP32_RELATIVE,
        *,
        weights: float = RANKS_TENSOR_RELATIVE,
        fresh: float = RANKS_FRESH_RELATIVE,
    ) -> None:
        """Asserts that all is within bounds.

        Args:
            relative: bound of loss and norm.
            weights: that of weights.
            fresh: that of weights that were zero at first.
        """
        bounds = Worst(relative, relative, weights, fresh)
        for name, bound in vars(bounds).items():
            assert getattr(self, name) <= bound, f"{name} of {self}, bound {bound}"


def compared(kinds: Sequence[Kind]) -> dict[Kind, Worst]:
    """How far each kind is from a single process. Must not be called in a process that has computed: ranks are forked.

    Args:
        kinds: all of the same number of ranks.
    """
    needed: dict[Kind, int] = {}
    for each in kinds:
        needed[_alone(each)] = max(needed.get(_alone(each), 0), each.num_steps)
    alone = [replace(kind, num_steps=num) for kind, num in needed.items()]
    references = launch(
        lambda world: {_alone(kind): list(taken(kind, Single("cpu", kind.precision))) for kind in alone},
        1,
        method="fork",
    )
    (num_ranks,) = {each.num_ranks for each in kinds}
    return launch(partial(_compare, kinds, references), num_ranks, method="fork")


def _alone(kind: Kind) -> Kind:
    """What one process trains to compare with."""
    same = {name: getattr(kind, name) for name in ("architecture", "lora", "optimizer", "precision", "epsilon")}
    return Kind("single", 1, **same)


def _compare(kinds: Sequence[Kind], references: dict[Kind, list[Taken]], world: World) -> dict[Kind, Worst]:
    found = {}
    with joined(world, "cpu", seconds_max=60) as device:
        for kind in kinds:
            reference = references[_alone(kind)][: kind.num_steps]
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
        apart = {name: _apart(each, other.weights[name]) for name, each in one.weights.items()}
        worst = Worst(
            max(worst.loss, abs(one.record.loss - other.record.loss) / one.record.loss),
            max(worst.norm, abs(one.record.gradient_norm - other.record.gradient_norm) / one.record.gradient_norm),
            max([worst.weights, *(apart[name] for name in apart.keys() - one.fresh)]),
            max([worst.fresh, *(apart[name] for name in apart.keys() & one.fresh)]),
        )
    return worst


def _apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest difference of an entry by the tensor's largest entry, which is not taken for less than an update."""
    return float(np.abs(one - other).max() / max(np.abs(one).max(), LEARNING_RATE))


def backend_of(kind: Kind, world: World, device: torch.device) -> Backend:
    """The backend of one rank."""
    match kind.backend:
        case "ddp":
            return Ddp(world, device, kind.precision)
        case "fsdp":
            num_shards = kind.shard_ranks or kind.num_ranks
            return Fsdp(
                world,
                device,
                kind.precision,
                num_shards=num_shards,
                keep_gathered=kind.keep_gathered,
                offload=kind.offload,
                seconds_max=60,
            )
        case "deepspeed":
            return Deepspeed(world, device, kind.precision, stage=kind.stage, offload=kind.offload, seconds_max=60)
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
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    fresh = frozenset(name for name, each in trained.items() if not each.any())
    if kind.activation_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    computed_in: set[torch.dtype] = set()
    for each in model.modules():
        if isinstance(each, nn.Linear):
            each.register_forward_hook(lambda module, inputs, output: computed_in.add(output.dtype))
    model = backend.wrap(model)
    made = optimizer_of(
        kind.optimizer, model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=kind.epsilon, fused=True, momentum=0.95
    )
    optimizer = backend.optimizer = backend.wrap_optimizer(model, made)
    batches = Loader(
        EXAMPLES,
        samples_per_step=SAMPLES_PER_STEP,
        tokens_per_rank_max=TOKENS_BF16_MAX if kind.precision == "bf16" else TOKENS_PER_RANK_MAX[backend.num_ranks],
        seed=1,
        rank=backend.rank,
        num_ranks=backend.num_ranks,
    )
    algorithm = MeanPerRank(backend.num_ranks) if kind.bug == "mean per rank" else Sft()
    for number in range(kind.num_steps):
        batch = batches.batch(number)
        _check_uneven(batch, backend)
        record = train_step(
            batch,
            model=model,
            algorithm=algorithm,
            optimizer=optimizer,
            backend=backend,
            learning_rate=LEARNING_RATE,
            gradient_norm_max=NORM_MAX,
        )
        record = replace(record, seconds=0.0)
        assert record.gradient_norm > NORM_MAX, "gradients are clipped"
        assert computed_in == {torch.bfloat16 if kind.precision == "bf16" else torch.float32}
        assert set(map(str, backend.gather(record))) == {str(record)}, "the same record on every rank"
        yield Taken(record, _trained(model, backend), fresh)


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
    assert len(mine) >= 2
    assert statistics.pstdev(weight for rank in everyone for weight in rank) > 1
    assert backend.num_ranks == 1 or statistics.pstdev(map(sum, everyone)) >= 0.5
