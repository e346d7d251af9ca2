"""Ranks under ZeRO take the step of a single process, in each stage, and who owns the boundary of a step matters.

Elsewhere DeepSpeed has stepped with each microbatch, or kept the gradient of the last one alone (open-instruct #1498):
it counts microbatches by itself unless it is told. Both are planted here, and both are seen.
"""

import pytest

from tests.subsystem.parity import Bug, Kind, Worst, brief, combinations, compared
from tests.support.tolerances import RANKS_BF16_RELATIVE, RANKS_FP32_RELATIVE, RANKS_TINY_EPSILON_RELATIVE

# Stages 1 and 2 are one piece of DeepSpeed's code, and every combination is met by one of them.
X2 = [
    *combinations("deepspeed", ["even"], turned=1, stage=1),
    *combinations("deepspeed", ["odd"], turned=1, stage=2),
    *combinations("deepspeed", turned=3, stage=3),
]
X3 = [brief("deepspeed", stage=stage, num_ranks=3, architecture="qwen2") for stage in (2, 3)]
BF16 = [brief("deepspeed", stage=stage, precision="bf16") for stage in (2, 3)]
TINY_EPSILON = brief("deepspeed", stage=2, epsilon=1e-8)
PLANTED: list[tuple[int, Bug]] = [
    (2, "mean per rank"),
    (1, "each microbatch is the last"),
    (2, "each microbatch is the last"),
    (1, "a step with each microbatch"),
    (2, "a step with each microbatch"),
    (3, "a step with each microbatch"),
]


@pytest.fixture(scope="module")
def found() -> dict[Kind, Worst]:
    planted = [brief("deepspeed", stage=stage, bug=bug) for stage, bug in PLANTED]
    return compared([*X2, *BF16, TINY_EPSILON, *planted]) | compared(X3)


@pytest.mark.parametrize("kind", [*X2, *X3], ids=str)
def test_ranks_take_the_step_of_one_process(kind: Kind, found: dict[Kind, Worst]) -> None:
    found[kind].check()


@pytest.mark.parametrize("kind", BF16, ids=str)
def test_in_bf16_ranks_take_the_step_of_one_process_in_bf16(kind: Kind, found: dict[Kind, Worst]) -> None:
    found[kind].check(RANKS_BF16_RELATIVE, weights=RANKS_BF16_RELATIVE)


def test_with_the_default_epsilon_weights_are_as_far_apart_as_rounding_may_put_them(found: dict[Kind, Worst]) -> None:
    found[TINY_EPSILON].check(weights=RANKS_TINY_EPSILON_RELATIVE)


@pytest.mark.parametrize(("stage", "bug"), PLANTED)
def test_a_boundary_or_a_divisor_of_its_own_would_be_seen(stage: int, bug: Bug, found: dict[Kind, Worst]) -> None:
    assert found[brief("deepspeed", stage=stage, bug=bug)].least > 100 * RANKS_FP32_RELATIVE
