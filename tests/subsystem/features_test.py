"""Each feature of model and loss through the whole recipe: it is on, and every backend trains the same run with it.

What a feature computes has its oracle in the unit tests. Here it meets the loader, several ranks, the optimizer and the
export, each of which could undo it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import training.parallel.fsdp  # noqa: F401 - so that forked processes need not spend seconds on it
from tests.subsystem.processes import forked, records_of
from tests.support.chats import chat, sums, write_jsonl
from tests.support.tolerances import RANKS_FP32_RELATIVE
from training.config import DataConfig, LoraConfig, ModelConfig, ParallelConfig, RunConfig, SftConfig
from training.imports import import_lean
from training.metrics.records import StepRecord
from training.models.tiny import save_tiny
from training.parallel.deepspeed import preload
from training.plan import Machine, Plan, plan
from training.recipes import train

preload("cpu")
import_lean("peft")  # Here for the same reason.
NUM_STEPS = 3


def planned(directory: Path, **changed: Any) -> Plan:
    if not (directory / "base").exists():
        save_tiny(directory / "base")
    data = write_jsonl(directory / "chat.jsonl", [*sums(9), chat("Say much.", "much " * 8), *sums(2)])
    config = SftConfig(
        ModelConfig(str(directory / "base")),
        DataConfig(str(data)),
        RunConfig(str(directory / "out"), num_steps=NUM_STEPS, device="cpu"),
        parallel=ParallelConfig(ranks=2, collective_seconds_max=60),
    )
    answer = plan(config, Machine(num_threads=2))
    assert isinstance(answer, Plan)
    small: dict[str, Any] = {
        "samples_per_step": 4,
        "tokens_per_rank_max": 96,
        "tokens_per_sample_max": 96,
        "epsilon": 1e-4,
        "exports": (),
    }
    return replace(answer, **small | changed)


SINGLE = {"backend": "single", "num_ranks": 1}
RANKS: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp"},
    "fsdp": {"backend": "fsdp"},
    "zero-3": {"backend": "deepspeed", "zero_stage": 3},
}
FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no packing": ({}, {"packing": False}),
    "attention sdpa": ({}, {"attention": "sdpa"}),
    "attention eager": ({}, {"attention": "eager"}),
    "loss in chunks": ({}, {"loss_chunk_tokens": 8}),
    "loss in chunks, lora": ({"lora": LoraConfig(rank=2)}, {"lora": LoraConfig(rank=2), "loss_chunk_tokens": 8}),
    "qlora": ({"lora": LoraConfig(rank=2)}, {"lora": LoraConfig(rank=2), "quantization": "nf4"}),
    "dora": ({"lora": LoraConfig(rank=2)}, {"lora": LoraConfig(rank=2, dora=True)}),
    "rslora": ({"lora": LoraConfig(rank=2)}, {"lora": LoraConfig(rank=2, rank_stabilized=True)}),
}
"""Of each feature, the plan without it and with it."""

SAME_NUMBERS = {"no packing", "attention sdpa", "attention eager", "loss in chunks", "loss in chunks, lora"}
"""Features that change how numbers are computed, and none of the numbers."""


def trained(made: Plan) -> list[StepRecord]:
    assert forked(train, made) == 0
    return [each for each in records_of(Path(made.out)) if isinstance(each, StepRecord)]


def assert_same(ours: list[StepRecord], theirs: list[StepRecord]) -> None:
    assert len(ours) == len(theirs) == NUM_STEPS
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=RANKS_FP32_RELATIVE)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=RANKS_FP32_RELATIVE)


@pytest.fixture(scope="module")
def plain_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], list[StepRecord]]:
    """Trains without a feature, once for all those that are compared with the same."""
    runs: dict[str, list[StepRecord]] = {}

    def plain(without: dict[str, Any]) -> list[StepRecord]:
        if str(without) not in runs:
            runs[str(without)] = trained(planned(tmp_path_factory.mktemp("plain"), **SINGLE, **without))
        return runs[str(without)]

    return plain


@pytest.mark.parametrize("feature", FEATURES)
def test_every_backend_trains_the_same_run_with_it(
    tmp_path: Path, plain_runs: Callable[[dict[str, Any]], list[StepRecord]], feature: str
) -> None:
    without, with_it = FEATURES[feature]
    plain = plain_runs(without)
    single = trained(planned(tmp_path, **SINGLE, **with_it, out=str(tmp_path / "single")))
    if feature in SAME_NUMBERS:
        assert_same(single, plain)
    else:
        with pytest.raises(AssertionError):
            assert_same(single, plain)
    for name, backend in RANKS.items():
        assert_same(trained(planned(tmp_path, **backend, **with_it, out=str(tmp_path / name))), single)


@pytest.mark.parametrize("feature", [name for name, (_, with_it) in FEATURES.items() if "lora" in with_it])
@pytest.mark.parametrize("place", [SINGLE, RANKS["zero-3"]], ids=["single", "zero-3"])
def test_exports_of_adapters_are_verified(tmp_path: Path, feature: str, place: dict[str, Any]) -> None:
    """The export loads what it wrote and compares logits before it gives a directory its name."""
    made = planned(tmp_path, **FEATURES[feature][1], **place, exports=("adapter", "merged"))
    assert forked(train, made) == 0
    assert {each.name for each in (tmp_path / "out").iterdir()} >= {"adapter", "merged"}
