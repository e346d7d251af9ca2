"""Ranks that hold a part of each weight take the step of a single process: the same loss, gradient norm and weights."""

from dataclasses import replace

import pytest

from tests.subsystem.parity import Kind, Worst, brief, combinations, compared
from tests.support.tolerances import (
    RANKS_BF16_RELATIVE,
    RANKS_FP32_RELATIVE,
    RANKS_FRESH_BF16_RELATIVE,
    RANKS_TINY_EPSILON_RELATIVE,
)

X2 = [*combinations("fsdp", ["even"], turned=2), Kind("fsdp", keep_gathered=True)]
X4 = [
    *combinations("fsdp", ["odd"], turned=2, num_ranks=4),
    Kind("fsdp", num_ranks=4, shard_ranks=2, architecture="qwen3_moe", lora=True, activation_checkpointing=True),
    Kind("fsdp", num_ranks=4, shard_ranks=2, architecture="qwen2", offload=True, keep_gathered=True),
    Kind("fsdp", num_ranks=4, shard_ranks=1),
]
BF16 = [brief("fsdp", precision="bf16"), brief("fsdp", precision="bf16", lora=True)]
TINY_EPSILON = brief("fsdp", epsilon=1e-8)
PLANTED = brief("fsdp", bug="mean per rank")


@pytest.fixture(scope="module")
def found() -> dict[Kind, Worst]:
    return compared([*X2, *BF16, TINY_EPSILON, PLANTED]) | compared(X4) | compared([replace(X2[0], num_ranks=1)])


@pytest.mark.parametrize("kind", [*X2, *X4, replace(X2[0], num_ranks=1)], ids=str)
def test_ranks_take_the_step_of_one_process(kind: Kind, found: dict[Kind, Worst]) -> None:
    found[kind].check()


@pytest.mark.parametrize("kind", BF16, ids=str)
def test_in_bf16_ranks_take_the_step_of_one_process_in_bf16(kind: Kind, found: dict[Kind, Worst]) -> None:
    found[kind].check(RANKS_BF16_RELATIVE, weights=RANKS_BF16_RELATIVE, fresh=RANKS_FRESH_BF16_RELATIVE)


def test_with_the_default_epsilon_weights_are_as_far_apart_as_rounding_may_put_them(found: dict[Kind, Worst]) -> None:
    found[TINY_EPSILON].check(weights=RANKS_TINY_EPSILON_RELATIVE)


def test_a_mean_per_rank_would_be_seen(found: dict[Kind, Worst]) -> None:
    """The bug that the global divisor is there to avoid, planted: each quantity is off by far more than rounding."""
    assert found[PLANTED].least > 100 * RANKS_FP32_RELATIVE
