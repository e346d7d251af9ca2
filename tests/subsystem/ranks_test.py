"""The whole trainer on two ranks: it resumes bit for bit, exports what it trained, and ends as one process would.

Ten samples a run, four a step: three steps an epoch, so step 4, where one run is stopped, is in the middle of the
second.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - so that forked processes need not spend seconds on it
import pytest
import torch
from safetensors.torch import load_file

import training.parallel.fsdp  # noqa: F401 - the same
from tests.subsystem.processes import records_of, tensors_of
from tests.support.chats import chat, sums, write_jsonl
from tests.support.tolerances import RANKS_FP32_RELATIVE
from training.checkpoint.manifest import committed
from training.checkpoint.save import save
from training.config import DataConfig, LoraConfig, ModelConfig, ParallelConfig, RunConfig, ScheduleConfig, SftConfig
from training.errors import CheckpointCorrupt, CheckpointError, RankFailed
from training.metrics.records import StepRecord
from training.models.tiny import save_tiny
from training.parallel.deepspeed import preload
from training.plan import Machine, Plan, plan
from training.recipes import sft as recipe
from training.recipes.sft import sft
from training.step import train_step

NUM_STEPS = 8
preload("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "ddp, dropout, saved beside the steps": {
        "backend": "ddp",
        "checkpoint_steps_between": 1,
        "asynchronous": True,
        "lora": LoraConfig(rank=2, dropout=0.25),
    },
    "ddp, all weights": {"backend": "ddp"},
    "ddp, moments in 8 bits": {"backend": "ddp", "optimizer": "adamw_8bit"},
    "ddp, muon": {"backend": "ddp", "optimizer": "muon"},
    "fsdp, all weights": {"backend": "fsdp", "checkpoint_steps_between": 1, "asynchronous": True},
    "fsdp, offload": {"backend": "fsdp", "offload": True},
    "fsdp, lora, dropout": {"backend": "fsdp", "lora": LoraConfig(rank=2, dropout=0.25)},
    "zero 1, all weights": {"backend": "deepspeed", "zero_stage": 1},
    "zero 2, lora, dropout": {"backend": "deepspeed", "zero_stage": 2, "lora": LoraConfig(rank=2, dropout=0.25)},
    "zero 3, all weights": {"backend": "deepspeed", "zero_stage": 3},
    "zero 3, lora, dropout, offload": {
        "backend": "deepspeed",
        "zero_stage": 3,
        "offload": True,
        "lora": LoraConfig(rank=2, dropout=0.25),
    },
    "zero 2, bf16, recomputed": {
        "backend": "deepspeed",
        "zero_stage": 2,
        "precision": "bf16",
        "activation_checkpointing": True,
    },
    "fsdp, bf16, recomputed": {"backend": "fsdp", "precision": "bf16", "activation_checkpointing": True},
}

PLACES = {
    "one process": {"backend": "single", "num_ranks": 1},
    "ddp x2": {"backend": "ddp", "num_ranks": 2},
    "fsdp x2": {"backend": "fsdp", "num_ranks": 2},
    "zero 1 x2": {"backend": "deepspeed", "zero_stage": 1, "num_ranks": 2},
    "zero 2 x2": {"backend": "deepspeed", "zero_stage": 2, "num_ranks": 2},
    "zero 3 x2": {"backend": "deepspeed", "zero_stage": 3, "num_ranks": 2},
    "zero 3 x3": {"backend": "deepspeed", "zero_stage": 3, "num_ranks": 3},
    "fsdp x3, offload": {"backend": "fsdp", "num_ranks": 3, "offload": True},
}


def planned(directory: Path, **changed: Any) -> Plan:
    model = directory / "base"
    if not model.exists():
        save_tiny(model)
    data = write_jsonl(directory / "chat.jsonl", [*sums(9), chat("Say much.", "much " * 8), *sums(2)])
    config = SftConfig(
        ModelConfig(str(model)),
        DataConfig(str(data), validation_fraction=0.15),
        RunConfig(str(directory / "out"), num_steps=NUM_STEPS, validation_steps_between=7, device="cpu"),
        schedule=ScheduleConfig(warmup_fraction=0.2),
        parallel=ParallelConfig(ranks=2, collective_seconds_max=60),
    )
    answer = plan(config, Machine(num_threads=2))
    assert isinstance(answer, Plan)
    small: dict[str, Any] = {
        "samples_per_step": 4,
        "tokens_per_rank_max": 96,
        "tokens_per_sample_max": 96,
        "exports": (),
    }
    return replace(answer, **small | changed)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_the_second_epoch_and_gone_on_is_the_same_run_bit_for_bit(tmp_path: Path, kind: str) -> None:
    whole = planned(tmp_path, **KINDS[kind])
    sft(whole)
    parts = replace(whole, out=str(tmp_path / "parts"))
    assert sft(replace(parts, steps_this_session_max=4)).stopped_by == "steps_this_session_max"
    sft(replace(parts, resume="must"))
    assert records_of(Path(whole.out)) == records_of(Path(parts.out))
    name = f"checkpoints/step-{NUM_STEPS:08d}"
    ours, theirs = tensors_of(Path(whole.out) / name), tensors_of(Path(parts.out) / name)
    assert ours.keys() == theirs.keys()
    assert any(each.startswith("random-00002-of-00002/") for each in ours)
    assert any(each.startswith("moments-00002-of-00002/") for each in ours) == (whole.backend in ("fsdp", "deepspeed"))
    for tensor, value in ours.items():
        assert torch.equal(value, theirs[tensor]), tensor


def test_dropout_differs_between_ranks(tmp_path: Path) -> None:
    """Seen where there is none: generators that have drawn differ by how much they drew, whatever they began with."""
    made = planned(tmp_path, num_steps=1)
    sft(made)
    checkpoint = Path(made.out) / "checkpoints/step-00000001"
    one, two = (load_file(checkpoint / f"random-0000{rank}-of-00002.safetensors")["cpu"] for rank in (1, 2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all weights", "lora"])
def test_every_backend_exports_what_one_process_exports(tmp_path: Path, lora: LoraConfig | None) -> None:
    kinds: Any = ("adapter", "merged") if lora else ("model",)
    file = "adapter/adapter_model.safetensors" if lora else "model/model.safetensors"
    exported = {}
    for place in ("one process", "ddp x2", "fsdp x2", "zero 2 x2", "zero 3 x2"):
        out = tmp_path / place
        summary = sft(planned(tmp_path, lora=lora, exports=kinds, epsilon=1e-4, out=str(out), **PLACES[place]))
        assert summary.exports == {kind: str(out / kind) for kind in kinds}
        exported[place] = load_file(out / file)
    alone = exported.pop("one process")
    assert len(alone) >= 20
    for place, tensors in exported.items():
        assert tensors.keys() == alone.keys()
        for name, value in alone.items():
            assert value.abs().max() > 0, f"{name} is empty"
            difference = (tensors[name] - value).abs().max()
            assert difference <= RANKS_FP32_RELATIVE * max(1, value.abs().max()), (place, name)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_ranks": 1}, "plan.num_ranks"),
        ({"backend": "ddp"}, "plan.backend"),
        ({"backend": "single", "num_ranks": 1}, "plan.backend"),
    ],
    ids=["fewer ranks", "another backend", "one process"],
)
def test_a_checkpoint_of_another_world_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    made = planned(tmp_path, backend="fsdp", num_steps=1)
    sft(made)
    with pytest.raises(CheckpointError, match=rf"step-00000001 \({named}\): ") as refused:
        sft(replace(made, **changed))
    hint = "hint: give the setting its old value back, or go on to rounding with --elastic true"
    assert str(refused.value).endswith(hint)


def at_step(chosen: int, rank: int, does: Callable[[], object]) -> Callable[..., StepRecord]:
    """A step before which one rank does something, once."""

    def step(batch: Any, **options: Any) -> StepRecord:
        if batch.step == chosen and options["backend"].rank == rank:
            does()
        return train_step(batch, **options)

    return step


@pytest.mark.parametrize("backend", ["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_ends_the_run_which_then_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], backend: str, rank: int
) -> None:
    def fail() -> None:
        raise ValueError("boom")

    made = planned(tmp_path, backend=backend, num_steps=5, checkpoint_steps_between=2)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "train_step", at_step(3, rank, fail))
        with pytest.raises(RankFailed, match=rf"^rank {rank}: ValueError: boom; .* hint: its traceback is above"):
            sft(made)
    assert f"rank {rank}: Traceback" in capfd.readouterr().err
    assert [each.name for each in committed(Path(made.out) / "checkpoints")] == ["step-00000002"]
    assert sft(replace(made, resume="must")).num_steps == 5


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recipe, "train_step", at_step(2, rank, terminate))
    summary = sft(planned(tmp_path))
    assert (summary.stopped_by, summary.num_steps) == ("SIGTERM", 3)
    assert [each.name for each in committed(tmp_path / "out/checkpoints")] == ["step-00000003"]


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
    ],
)
def test_elastic_run_goes_on_at_another_place_to_rounding(tmp_path: Path, before: str, after: str) -> None:
    made = planned(tmp_path, elastic=True, epsilon=1e-4)
    unbroken = replace(made, **PLACES["one process"], out=str(tmp_path / "unbroken"))
    sft(unbroken)
    sft(replace(made, **PLACES[before], steps_this_session_max=4))
    sft(replace(made, **PLACES[after]))
    for one, other in zip(records_of(Path(unbroken.out)), records_of(Path(made.out)), strict=True):
        assert type(one) is type(other)
        assert other.step == one.step
        assert other.loss == pytest.approx(one.loss, rel=RANKS_FP32_RELATIVE)
        if isinstance(one, StepRecord) and isinstance(other, StepRecord):
            # A moment that was lost, or put beside another weight, would show here.
            assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=RANKS_FP32_RELATIVE)


def test_elastic_run_at_the_same_place_is_exact(tmp_path: Path) -> None:
    made = planned(tmp_path, elastic=True, lora=LoraConfig(rank=2, dropout=0.25), **PLACES["fsdp x2"])
    sft(replace(made, out=str(tmp_path / "whole")))
    sft(replace(made, steps_this_session_max=4))
    sft(made)
    assert records_of(tmp_path / "whole") == records_of(Path(made.out))


def test_elastic_run_still_refuses_what_is_no_matter_of_place(tmp_path: Path) -> None:
    made = planned(tmp_path, elastic=True, num_steps=1, **PLACES["fsdp x2"])
    sft(made)
    with pytest.raises(CheckpointError, match=r"\(plan.seed\): 1 now, 0 when it was saved"):
        sft(replace(made, seed=1, **PLACES["ddp x2"]))


@pytest.mark.parametrize("rank", [1, 2])
def test_a_lost_or_damaged_shard_is_refused_by_the_name_of_its_file(tmp_path: Path, rank: int) -> None:
    made = planned(tmp_path, backend="fsdp", num_steps=1)
    sft(made)
    shard = Path(made.out) / f"checkpoints/step-00000001/moments-0000{rank}-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=rf"{shard.name}: its content has another SHA-256"):
        sft(made)
    shard.unlink()
    with pytest.raises(CheckpointCorrupt, match=rf"{shard.name}: the file is not there"):
        sft(made)


BESIDE = pytest.mark.parametrize("asynchronous", [False, True], ids=["before the next step", "beside the steps"])


def saving(during: Callable[[int, str], object]) -> Callable[..., Path]:
    """A save that calls `during` with the rank and each boundary that it is about to cross after step 4."""

    def save_and_tell(checkpoints: Path, at: int, **options: Any) -> Path:
        rank = options["ranks"].rank
        return save(checkpoints, at, on_boundary=lambda name: at == 4 and during(rank, name), **options)

    return save_and_tell


@BESIDE
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """Rank 1, at each boundary of its own. Those of rank 0 are the ones of a single process, which has its own test."""
    whole = planned(tmp_path, backend="fsdp", num_steps=5, checkpoint_steps_between=2, asynchronous=asynchronous)
    sft(whole)
    boundaries = [f"{does} {name}" for name in ("parameters", "moments", "random") for does in ("write", "flush")]
    for number, boundary in enumerate(boundaries):

        def kill(rank: int, name: str, boundary: str = boundary) -> None:
            if rank == 1 and name.startswith(boundary):
                os.kill(os.getpid(), signal.SIGKILL)

        crashed = replace(whole, out=str(tmp_path / f"crashed-{number}"))
        # Ranks are forked from this process, so they save with what is put in place here.
        with monkeypatch.context() as patch:
            patch.setattr(recipe, "save", saving(kill))
            with pytest.raises(RankFailed, match=r"^rank 1: it was killed by SIGKILL"):
                sft(crashed)
        checkpoints = Path(crashed.out) / "checkpoints"
        assert [each.name for each in committed(checkpoints)] == ["step-00000002"]
        sft(replace(crashed, resume="must"))
        assert records_of(Path(crashed.out)) == records_of(Path(whole.out))


@BESIDE
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write_stops_all_with_an_error_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, asynchronous: bool
) -> None:
    def fill_the_disk(rank: int, name: str) -> None:
        if rank == failing and name.startswith("flush moments"):
            raise OSError("No space left on device")

    monkeypatch.setattr(recipe, "save", saving(fill_the_disk))
    made = planned(tmp_path, backend="fsdp", num_steps=7, checkpoint_steps_between=2, asynchronous=asynchronous)
    with pytest.raises(CheckpointError, match=r"step-00000004: it cannot be written \(.*No space left on device\)"):
        sft(made)
    assert [each.name for each in committed(Path(made.out) / "checkpoints")] == ["step-00000002"]
