"""Short runs of the whole trainer on a few ranks, and what must hold of them.

Ten samples a run, four a step: three steps an epoch, so step 4, where one run is stopped, is in the middle of the
second.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training.parallel.fsdp  # noqa: F401 - so that forked processes need not spend seconds on it
from tests.subsystem.processes import records_of, tensors_of
from tests.support.chats import chat, sums, write_jsonl
from training import run
from training.checkpoint.manifest import POINTER, file_of_rank
from training.checkpoint.state import capture
from training.config import DataConfig, ModelConfig, ParallelConfig, RunConfig, ScheduleConfig, SftConfig
from training.data.batch import Batch
from training.imports import import_lean
from training.metrics.records import StepRecord
from training.models.tiny import save_tiny
from training.parallel.deepspeed import preload
from training.plan import Machine, Plan, plan
from training.recipes import train
from training.step import train_step

NUM_STEPS, STOP = 8, 4
preload("cpu")
import_lean("peft")  # Here for the same reason.

PLACES = {
    "one process": {"backend": "single", "num_ranks": 1},
    "ddp x2": {"backend": "ddp", "num_ranks": 2},
    "fsdp x2": {"backend": "fsdp", "num_ranks": 2},
    "zero 1 x2": {"backend": "deepspeed", "zero_stage": 1, "num_ranks": 2},
    "zero 2 x2": {"backend": "deepspeed", "zero_stage": 2, "num_ranks": 2},
    "zero 2 x2, offload": {"backend": "deepspeed", "zero_stage": 2, "num_ranks": 2, "offload": True},
    "zero 3 x2": {"backend": "deepspeed", "zero_stage": 3, "num_ranks": 2},
    "zero 3 x2, offload": {"backend": "deepspeed", "zero_stage": 3, "num_ranks": 2, "offload": True},
    "zero 3 x3": {"backend": "deepspeed", "zero_stage": 3, "num_ranks": 3},
    "fsdp x4": {"backend": "fsdp", "num_ranks": 4},
    "fsdp x4, shards of 2": {"backend": "fsdp", "num_ranks": 4, "shard_ranks": 2},
    "fsdp x3, offload": {"backend": "fsdp", "num_ranks": 3, "offload": True},
}
"""Backends and numbers of ranks, as fields of a plan."""


def planned(directory: Path, **changed: Any) -> Plan:
    """A run of two ranks under `directory`, with some fields of the plan changed."""
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


def check_resumes_exactly(directory: Path, **changed: Any) -> None:
    """Goes on from the checkpoint of step 4 of a run, and asks for the records and the last checkpoint of that run."""
    whole = planned(directory, checkpoint_steps_between=STOP, num_kept=3, **changed)
    train(whole)
    parts = replace(whole, out=str(directory / "parts"))
    shutil.copytree(whole.out, parts.out)
    shutil.rmtree(Path(parts.out) / f"checkpoints/step-{NUM_STEPS:08d}")
    (Path(parts.out) / "checkpoints" / POINTER).write_text(f"step-{STOP:08d}\n", encoding="utf-8")
    assert records_of(Path(whole.out))[-1].step == NUM_STEPS
    # Ranks are forked from this process, so they step with what is put in place here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train_step", _as_saved(Path(parts.out) / f"checkpoints/step-{STOP:08d}"))
        train(replace(parts, resume="must"))
    assert records_of(Path(whole.out)) == records_of(Path(parts.out))
    name = f"checkpoints/step-{NUM_STEPS:08d}"
    ours, theirs = tensors_of(Path(whole.out) / name), tensors_of(Path(parts.out) / name)
    assert ours.keys() == theirs.keys()
    assert any(each.startswith(f"random-00002-of-{whole.num_ranks:05d}/") for each in ours)
    assert any(each.startswith("moments-00002-of-00002/") for each in ours) == (whole.backend != "ddp")
    for tensor, value in ours.items():
        assert torch.equal(value, theirs[tensor]), tensor


def _as_saved(checkpoint: Path) -> Callable[..., StepRecord]:
    """A step. Before the first, each rank compares its weights, moments and generators with its files, bit for bit."""

    def step(batch: Batch, **options: Any) -> StepRecord:
        if batch.step == STOP:
            backend = options["backend"]
            shard = (backend.rank % backend.num_shards, backend.num_shards)
            file_of = {"parameters": shard, "moments": shard, "random": (backend.rank, backend.num_ranks)}
            for file, live in capture(options["model"], options["optimizer"]).items():
                saved = load_file(checkpoint / f"{file_of_rank(file, *file_of[file])}.safetensors")
                assert saved.keys() == live.keys()
                for name, value in live.items():
                    assert torch.equal(value, saved[name]), f"{file} of {name}"
        return train_step(batch, **options)

    return step
