"""What a backend promises, on a model of a few numbers: no transformers, so that this takes seconds.

The parity tests hold all of it against real architectures; here each promise is by itself, and so is what breaks it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from tests.support.examples import random_examples
from tests.support.tolerances import RANKS_FP32_RELATIVE
from training.algorithms.algorithm import Logprobs
from training.data.batch import Batch, Microbatch
from training.data.loader import Loader
from training.metrics.records import StepRecord
from training.optimizer import adamw
from training.parallel.backend import Backend
from training.parallel.ddp import Ddp
from training.parallel.deepspeed import Deepspeed, preload
from training.parallel.fsdp import Fsdp
from training.parallel.launch import launch
from training.parallel.shards import part_of
from training.parallel.single import Single
from training.parallel.world import World, joined
from training.step import train_step

RANKS = ["ddp", "fsdp"]
preload("cpu")
EXAMPLES = random_examples([5, 19, 11, 3, 8, 24, 7, 13, 2, 16, 9, 4], seed=3)


class Layer(nn.Module):
    """What FSDP takes as a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16).view(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


class Model(nn.Module):
    """Two layers and what is left over, from a number to a number."""

    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.linspace(0, 1, 4)[None])
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.first
        for layer in self.layers:
            x = layer(x)
        return x.sum(-1)


class Fit:
    """Σ w · (f(token id) − 1)² / Σ w, and the weights themselves as a metric, whose mean over weights is 1."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def divisor(self, batch: Batch) -> float:
        return batch.weight_sum

    def loss_sum(self, logprobs: Logprobs, microbatch: Microbatch) -> tuple[Tensor, dict[str, float]]:
        error = self.model(microbatch.token_ids_T[:, None] / 256) - 1
        return torch.dot(microbatch.weights_T, error**2), {"weights": float(microbatch.weights_T.sum())}


@contextmanager
def backend_of(kind: str, world: World, *, stage: int = 2, **options: bool) -> Iterator[Backend]:
    if kind == "single":
        yield Single("cpu", "fp32")
        return
    with joined(world, "cpu", seconds_max=60) as device:
        if kind == "ddp":
            yield Ddp(world, device, "fp32")
        elif kind == "deepspeed":
            yield Deepspeed(world, device, "fp32", stage=stage, offload=False, seconds_max=60)
        else:
            yield Fsdp(
                world,
                device,
                "fp32",
                num_shards=world.num_ranks,
                seconds_max=60,
                **{"keep_gathered": False, "offload": False} | options,
            )


def values(model: nn.Module, backend: Backend) -> list[float]:
    """All weights in one list, joined from the parts of all ranks."""
    found: list[float] = []
    for parameter in model.parameters():
        part = part_of(parameter).flatten().tolist()
        found += [value for each in backend.gather(part)[: backend.num_shards] for value in each]
    return found


def train(kind: str, world: World) -> tuple[list[StepRecord], list[float]]:
    torch.set_num_threads(1)
    with backend_of(kind, world) as backend:
        model = backend.wrap(Model())
        optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-4, fused=True)
        optimizer = backend.wrap_optimizer(model, optimizer)
        batches = Loader(
            EXAMPLES,
            samples_per_step=12,
            tokens_per_rank_max=30,
            seed=1,
            rank=backend.rank,
            num_ranks=backend.num_ranks,
        )
        records = []
        for number in range(3):
            batch = batches.batch(number)
            assert len(batch.microbatches) > 1, "accumulation must happen"
            record = train_step(
                batch,
                model=model,
                algorithm=Fit(model),
                optimizer=optimizer,
                backend=backend,
                learning_rate=1e-2,
                gradient_norm_max=0.5,
            )
            records.append(replace(record, seconds=0.0, num_microbatches=0))
        return records, values(model, backend)


@pytest.mark.parametrize("kind", [*RANKS, "deepspeed"])
def test_steps_of_two_ranks_are_those_of_one_process(kind: str) -> None:
    # Ranks are forked from this process, so it must not compute itself.
    records, weights = launch(partial(train, "single"), 1, method="fork")
    ours, trained = launch(partial(train, kind), 2, method="fork")
    assert trained == pytest.approx(weights, rel=RANKS_FP32_RELATIVE, abs=RANKS_FP32_RELATIVE)
    for one, other in zip(records, ours, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=RANKS_FP32_RELATIVE)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=RANKS_FP32_RELATIVE)
        assert other.metrics == {"weights": pytest.approx(1.0)}
        assert replace(other, loss=0, gradient_norm=0, metrics={}) == replace(one, loss=0, gradient_norm=0, metrics={})


def first_values(kind: str, world: World) -> list[list[float]]:
    with backend_of(kind, world) as backend:
        model = Model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(world.rank + 1)
        wrapped = backend.wrap(model)
        # Each rank's own part: joined from one copy, the copies of the others would not be looked at.
        return backend.gather([value for each in wrapped.parameters() for value in part_of(each).flatten().tolist()])


@pytest.mark.parametrize("kind", RANKS)
def test_all_ranks_begin_with_the_values_of_rank_0(kind: str) -> None:
    everyone = launch(partial(first_values, kind), 3, method="fork")
    assert len([part for part in everyone if part]) >= 2
    assert {value for part in everyone for value in part} == {1.0}


def after_a_forward_pass(world: World, **options: bool) -> list[tuple[bool, bool]]:
    """Of each layer, whether its weight is a part again before the backward pass, and whether it waits on the CPU."""
    with backend_of("fsdp", world, **options) as backend:
        model: Any = backend.wrap(Model())
        loss = model(torch.ones(2, 1)).sum()
        # There is no asking FSDP where parts wait, and on a CPU no seeing it.
        policies = [layer._get_fsdp_state()._fsdp_param_group.offload_policy for layer in model.layers]
        found = [
            (isinstance(layer.weight, DTensor), isinstance(policy, CPUOffloadPolicy))
            for layer, policy in zip(model.layers, policies, strict=True)
        ]
        backend.backward(loss, is_last=True)
        return found


@pytest.mark.parametrize("keep_gathered", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_fsdp_gathers_and_offloads_as_it_is_told(keep_gathered: bool, offload: bool) -> None:
    found = launch(partial(after_a_forward_pass, keep_gathered=keep_gathered, offload=offload), 2, method="fork")
    assert found == [(not keep_gathered, offload)] * 2


def num_gathers(sent: CommDebugMode) -> int:
    """Messages that carry weights; DeepSpeed also sends what it has seen of the order of modules, once."""
    return sum(num for operation, num in sent.get_comm_counts().items() if "gather" in str(operation))


@torch.no_grad()
def with_weights_gathered(kind: str, world: World, **options: Any) -> None:
    """Checks that a pass sends nothing while weights are gathered, says the same, and that they are cut afterwards."""
    with backend_of(kind, world, **options) as backend:
        model = backend.wrap(Model())
        backend.wrap_optimizer(model, adamw(model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-4, fused=True))
        x, before = torch.ones(2, 1), values(model, backend)
        said = model(x)
        for _ in range(2):
            with backend.gathered(model):
                for _ in range(3):
                    with CommDebugMode() as sent:
                        assert torch.equal(model(x), said)
                    assert num_gathers(sent) == 0
            assert values(model, backend) == before
            with CommDebugMode() as sent:
                assert torch.equal(model(x), said)
            assert num_gathers(sent) > 0, "cut again, so that a pass gathers"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("fsdp", {"keep_gathered": False}), ("fsdp", {"keep_gathered": True}), ("deepspeed", {"stage": 3})],
)
def test_gathered_weights_are_sent_once_for_many_passes(kind: str, options: dict[str, Any]) -> None:
    launch(partial(with_weights_gathered, kind, **options), 2, method="fork")


class Large(nn.Module):
    """Forty-eight mebibytes, so that a copy of it shows among what a process has in memory."""

    _no_split_modules = ("Linear",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1024, 1024, bias=False) for _ in range(12)])


BYTES_OF_ONE, BYTES_OF_ALL = 4 * 2**20, 48 * 2**20
M_MMAP_THRESHOLD = -3
"""From malloc.h."""


def memory(which: str) -> int:
    """Bytes that this process has in memory, now (VmRSS) or at most since it was forgotten (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{which}:"))) * 1024


def growth_while_put_together(kind: str, world: World) -> list[int]:
    """Of each rank, by how many bytes what it has in memory grows at most while rank 0 gets the whole model."""
    # What is freed goes back to the kernel from this size on; glibc otherwise raises it to that of what was freed.
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20) == 1
    with backend_of(kind, world, **({"stage": 3} if kind == "deepspeed" else {})) as backend:
        model = backend.wrap(Large())
        backend.wrap_optimizer(model, adamw(model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-4, fused=True))
        backend.gather(None)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        whole = backend.whole(model, Large)
        assert (whole is not None) == (backend.rank == 0)
        return backend.gather(memory("VmHWM") - before)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_a_model_is_put_together_on_one_rank_and_a_weight_at_a_time(kind: str) -> None:
    """By the whole process, as the kernel counts it: what no profiler of tensors sees is memory as well."""
    first, *others = launch(partial(growth_while_put_together, kind), 2, method="fork")
    assert first + BYTES_OF_ONE >= BYTES_OF_ALL
    assert first <= BYTES_OF_ALL + 5 * BYTES_OF_ONE
    assert all(growth <= 5 * BYTES_OF_ONE for growth in others)
