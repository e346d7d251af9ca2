"""Ranks that hold the whole model take the step of a single process: the same loss, gradient norm and weights."""

import itertools
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from tests.subsystem.parity import EXAMPLES, FEATURES, HALVES, Half, Kind, Worst, brief, combinations, compared
from tests.support.tolerances import (
    RANKS_8_BITS_TENSOR_RELATIVE,
    RANKS_BF16_RELATIVE,
    RANKS_COARSE_OPTIMIZER_RELATIVE,
    RANKS_FP32_RELATIVE,
    RANKS_TINY_EPSILON_RELATIVE,
)
from training.algorithms.sft import Sft
from training.data.loader import Loader
from training.models.tiny import Architecture, tiny_model
from training.parallel.backend import Backend
from training.parallel.ddp import Ddp
from training.parallel.fsdp import Fsdp
from training.parallel.launch import launch
from training.parallel.single import Single
from training.parallel.world import World, joined
from training.step import validate

KINDS = combinations("ddp", offload=False)
BF16 = brief("ddp", precision="bf16")
TINY_EPSILON = brief("ddp", epsilon=1e-8)
PLANTED = brief("ddp", bug="mean per rank")
COARSE = {
    brief("ddp", optimizer="muon"): RANKS_COARSE_OPTIMIZER_RELATIVE,
    brief("ddp", optimizer="adamw_8bit"): RANKS_8_BITS_TENSOR_RELATIVE,
}
"""Optimizers whose arithmetic is coarse, and how near to each other tensors then are."""
X4 = replace(KINDS[0], num_ranks=4)


@pytest.fixture(scope="module")
def found() -> dict[Kind, Worst]:
    return compared([*KINDS, *COARSE, BF16, TINY_EPSILON, PLANTED])


@pytest.mark.parametrize(("offload", "turned"), list(itertools.product((False, True), range(4))))
def test_each_architecture_is_with_and_without_each_feature(offload: bool, turned: int) -> None:
    kinds = combinations("fsdp", offload=offload, turned=turned)
    assert len(set(kinds)) == 8
    for feature, value in itertools.product(FEATURES, (False, True)):
        met = {each.architecture for each in kinds if getattr(each, feature) is value}
        assert met == (set(get_args(Architecture)) if offload or feature != "offload" or not value else set())


@pytest.mark.parametrize("half", HALVES)
def test_half_of_the_combinations_has_any_two_features_in_every_way_and_all_architectures(half: Half) -> None:
    kinds = combinations("fsdp", [half])
    assert len(kinds) == 4
    assert {each.architecture for each in kinds} == set(get_args(Architecture))
    for one, other in itertools.combinations(FEATURES, 2):
        assert len({(getattr(each, one), getattr(each, other)) for each in kinds}) == 4


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_two_ranks_take_the_step_of_one_process(kind: Kind, found: dict[Kind, Worst]) -> None:
    found[kind].check()


@pytest.mark.parametrize("kind", COARSE, ids=str)
def test_two_ranks_take_the_step_of_one_as_far_as_the_optimizer_is_exact(kind: Kind, found: dict[Kind, Worst]) -> None:
    found[kind].check(RANKS_COARSE_OPTIMIZER_RELATIVE, weights=COARSE[kind])


def test_in_bf16_two_ranks_take_the_step_of_one_in_bf16(found: dict[Kind, Worst]) -> None:
    found[BF16].check(RANKS_BF16_RELATIVE, weights=RANKS_BF16_RELATIVE)


def test_with_the_default_epsilon_weights_are_as_far_apart_as_rounding_may_put_them(found: dict[Kind, Worst]) -> None:
    found[TINY_EPSILON].check(weights=RANKS_TINY_EPSILON_RELATIVE)


def test_four_ranks_take_the_step_of_one_process() -> None:
    compared([X4])[X4].check()


def test_a_mean_per_rank_would_be_seen(found: dict[Kind, Worst]) -> None:
    """The bug that the global divisor is there to avoid, planted: each quantity is off by far more than rounding."""
    assert found[PLANTED].least > 100 * RANKS_FP32_RELATIVE


def one_sided(world: World) -> list[float | None]:
    """Gradients of three weights: of one used by both ranks, by one of them, and by none."""
    with joined(world, "cpu", seconds_max=60) as device:
        backend = Ddp(world, device, "fp32")
        model = nn.ParameterList([nn.Parameter(torch.tensor(float(value))) for value in (2, 3, 5)])
        backend.wrap(model)
        for is_last in (False, True):
            loss = 7 * model[0] + 11 * model[1] if world.rank == 1 else 13 * model[0]
            backend.backward(loss, is_last=is_last)
        return [None if each.grad is None else each.grad.item() for each in model]


def test_gradients_of_ranks_are_added_once_and_a_weight_that_nobody_used_has_none() -> None:
    assert launch(one_sided, 2, method="fork") == [2 * (7 + 13), 2 * 11, None]


def validation(backend: Backend) -> float:
    torch.set_num_threads(1)
    model = backend.wrap(tiny_model(seed=2))
    batches = Loader(
        EXAMPLES, samples_per_step=7, tokens_per_rank_max=40, seed=1, rank=backend.rank, num_ranks=backend.num_ranks
    )
    every = [batches.batch(number) for number in range(batches.steps_per_epoch)]
    return validate(every, step=0, model=model, algorithm=Sft(), backend=backend).loss


def validation_of_rank(world: World) -> float:
    with joined(world, "cpu", seconds_max=60) as device:
        return validation(Fsdp(world, device, "fp32", num_shards=2, keep_gathered=False, offload=False, seconds_max=60))


def test_validation_loss_of_ranks_is_that_of_one_process() -> None:
    alone = launch(lambda world: validation(Single("cpu", "fp32")), 1, method="fork")
    assert launch(validation_of_rank, 2, method="fork") == pytest.approx(alone, rel=RANKS_FP32_RELATIVE)
