"""A run goes on from the checkpoint of another backend, stage or number of ranks, to rounding."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.subsystem.processes import records_of
from tests.subsystem.ranks import PLACES, planned
from tests.support.tolerances import RANKS_COARSE_OPTIMIZER_RELATIVE, RANKS_FP32_RELATIVE
from training.config import LoraConfig
from training.errors import CheckpointError
from training.metrics.records import StepRecord
from training.recipes import train


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one process", "fsdp x3, offload"),
        ("ddp x2", "fsdp x2"),
        ("fsdp x2", "one process"),
        ("fsdp x2", "fsdp x3, offload"),
        ("fsdp x3, offload", "fsdp x2"),
        ("fsdp x3, offload", "ddp x2"),
        ("one process", "zero 3 x3"),
        ("zero 3 x3", "zero 1 x2"),
        ("zero 1 x2", "zero 3 x2"),
        ("zero 2 x2", "fsdp x2"),
        ("fsdp x2", "zero 2 x2"),
        ("zero 3 x2", "one process"),
        ("fsdp x4, shards of 2", "fsdp x2"),
        ("zero 1 x2", "fsdp x4, shards of 2"),
    ],
)
def test_elastic_run_goes_on_at_another_place_to_rounding(tmp_path: Path, before: str, after: str) -> None:
    made = planned(tmp_path, elastic=True, epsilon=1e-4)
    unbroken = replace(made, **PLACES["one process"], out=str(tmp_path / "unbroken"))
    train(unbroken)
    train(replace(made, **PLACES[before], steps_this_session_max=4))
    train(replace(made, **PLACES[after]))
    for one, other in zip(records_of(Path(unbroken.out)), records_of(Path(made.out)), strict=True):
        assert type(one) is type(other)
        assert other.step == one.step
        assert other.loss == pytest.approx(one.loss, rel=RANKS_FP32_RELATIVE)
        if isinstance(one, StepRecord) and isinstance(other, StepRecord):
            # A moment that was lost, or put beside another weight, would show here.
            assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=RANKS_FP32_RELATIVE)


def test_elastic_run_takes_moments_in_8_bits_along(tmp_path: Path) -> None:
    """They bring tables along whose shapes are not their weights'."""
    made = planned(tmp_path, elastic=True, optimizer="adamw_8bit", fused=False)
    train(replace(made, **PLACES["ddp x2"], out=str(tmp_path / "unbroken")))
    train(replace(made, **PLACES["ddp x2"], steps_this_session_max=4))
    train(replace(made, **PLACES["one process"]))
    for one, other in zip(records_of(tmp_path / "unbroken"), records_of(Path(made.out)), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=RANKS_COARSE_OPTIMIZER_RELATIVE)


def test_elastic_run_at_the_same_place_is_exact(tmp_path: Path) -> None:
    made = planned(tmp_path, elastic=True, lora=LoraConfig(rank=2, dropout=0.25), **PLACES["fsdp x2"])
    train(replace(made, out=str(tmp_path / "whole")))
    train(replace(made, steps_this_session_max=4))
    train(made)
    assert records_of(tmp_path / "whole") == records_of(Path(made.out))


def test_elastic_run_still_refuses_what_is_no_matter_of_place(tmp_path: Path) -> None:
    made = planned(tmp_path, elastic=True, num_steps=1, **PLACES["fsdp x2"])
    train(made)
    with pytest.raises(CheckpointError, match=r"\(plan.seed\): 1 now, 0 when it was saved"):
        train(replace(made, seed=1, **PLACES["ddp x2"]))
