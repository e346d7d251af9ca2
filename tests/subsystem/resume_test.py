"""A run that was stopped and went on is the run that was not, bit for bit: losses, norms, weights, moments, generators.

Ten samples a run, four a step: three steps an epoch, so step 10 is the first of the fourth epoch and step 4, where one
run is stopped, is in the middle of the second.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.subsystem.processes import forked, records_of, tensors_of
from tests.support.chats import sums, write_jsonl
from training import run
from training.checkpoint.save import save
from training.checkpoint.state import restore
from training.config import DataConfig, LoraConfig, ModelConfig, RunConfig, ScheduleConfig, SftConfig
from training.errors import CheckpointCorrupt
from training.imports import import_lean
from training.models.tiny import save_tiny
from training.plan import Machine, Plan, plan
from training.recipes import train

import_lean("peft")  # Here, so that forked processes need not spend seconds on it.

NUM_STEPS = 20
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, model with dropout": {"architecture_dropout": 0.2},
    "lora": {"lora": LoraConfig(rank=2, dropout=0.25)},
    "bf16": {"precision": "bf16"},
    "full, noise": {"neftune_alpha": 5.0},
    "qlora, bf16": {"lora": LoraConfig(rank=2, dropout=0.25), "quantization": "nf4", "precision": "bf16"},
    "moments in 8 bits": {"optimizer": "adamw_8bit", "fused": False},
    "muon": {"optimizer": "muon"},
}


def planned(directory: Path, *, architecture_dropout: float = 0.0, **changed: Any) -> Plan:
    model = save_tiny(directory / "base")
    if architecture_dropout:
        file = model / "config.json"
        without = '"attention_dropout": 0.0'
        assert without in file.read_text()
        file.write_text(file.read_text().replace(without, f'"attention_dropout": {architecture_dropout}'))
    data = write_jsonl(directory / "chat.jsonl", sums(12))
    config = SftConfig(
        ModelConfig(str(model)),
        DataConfig(str(data), validation_fraction=0.15),
        RunConfig(str(directory / "out"), num_steps=NUM_STEPS, validation_steps_between=7, device="cpu"),
        schedule=ScheduleConfig(warmup_fraction=0.2),
    )
    answer = plan(config, Machine(num_threads=1))
    assert isinstance(answer, Plan)
    small: dict[str, Any] = {
        "samples_per_step": 4,
        "tokens_per_rank_max": 64,
        "tokens_per_sample_max": 64,
        "exports": (),
    }
    return replace(answer, **small | changed)


def assert_same_end(one: Path, other: Path, *, num_steps: int = NUM_STEPS) -> None:
    assert records_of(one) == records_of(other)
    name = f"checkpoints/step-{num_steps:08d}"
    ours, theirs = tensors_of(one / name), tensors_of(other / name)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 50
    for tensor, value in ours.items():
        assert torch.equal(value, theirs[tensor]), tensor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [(10,), (4, 9)], ids=["at 10", "at 4, in epoch 2, and at 9"])
def test_stopped_and_gone_on_is_the_same_run_bit_for_bit(tmp_path: Path, kind: str, stops: tuple[int, ...]) -> None:
    whole = planned(tmp_path, **KINDS[kind])
    assert forked(train, whole) == 0
    parts = replace(whole, out=str(tmp_path / "parts"))
    begin = 0
    for stop in stops:
        assert forked(train, replace(parts, steps_this_session_max=stop - begin)) == 0
        begin = stop
    assert forked(train, replace(parts, resume="must")) == 0
    assert_same_end(Path(whole.out), Path(parts.out))


def test_generators_matter_where_there_is_dropout(tmp_path: Path) -> None:
    """Without them in the checkpoint the test above would have to fail: here they are damaged, and it does."""
    whole = planned(tmp_path, lora=LoraConfig(rank=2, dropout=0.25))
    assert forked(train, whole) == 0
    parts = replace(whole, out=str(tmp_path / "parts"))
    assert forked(train, replace(parts, steps_this_session_max=10)) == 0
    assert forked(_go_on_with_other_generators, parts) == 0
    assert records_of(Path(whole.out))[:10] == records_of(Path(parts.out))[:10]
    assert records_of(Path(whole.out)) != records_of(Path(parts.out))


def _go_on_with_other_generators(parts: Plan) -> None:
    def forgetful(*arguments: Any, **options: Any) -> None:
        restore(*arguments, **options)
        torch.manual_seed(99)

    # A bug planted on purpose, in a process of its own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "restore", forgetful)
        train(parts)


def _killed_at(plan: Plan, step: int, boundary: int) -> None:
    """Trains, and is killed as the save of `step` is about to cross a boundary; ends by itself if there are fewer."""

    def killing_save(checkpoints: Path, at: int, **options: Any) -> Path:
        crossed = -1

        def on_boundary(name: str) -> None:
            nonlocal crossed
            crossed += 1
            if at == step and crossed == boundary:
                os.kill(os.getpid(), signal.SIGKILL)

        return save(checkpoints, at, on_boundary=on_boundary, **options)

    # Put in its place in a process of its own, which is the one to be killed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save", killing_save)
        train(plan)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["before the next step", "beside the steps"])
def test_killed_at_every_boundary_of_a_save_the_run_ends_as_if_it_had_not_been(
    tmp_path: Path, asynchronous: bool
) -> None:
    small = {"lora": LoraConfig(rank=2, dropout=0.25), "num_steps": 8}
    whole = planned(tmp_path, checkpoint_steps_between=2, asynchronous=asynchronous, **small)
    assert forked(train, whole) == 0
    boundary = 0
    while True:
        crashed = replace(whole, out=str(tmp_path / f"crashed-{boundary}"))
        # The save after step 6 is the first that rotates.
        code = forked(_killed_at, crashed, 6, boundary)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert forked(train, crashed) == 0
        assert_same_end(Path(whole.out), Path(crashed.out), num_steps=8)
        boundary += 1
    assert boundary >= 20, "every write, flush and rename is a boundary"


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_checkpoint_is_refused_by_the_name_of_the_file(tmp_path: Path, damage: str) -> None:
    made = planned(tmp_path)
    assert forked(train, replace(made, steps_this_session_max=2)) == 0
    path = tmp_path / "out/checkpoints/step-00000002/moments.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(CheckpointCorrupt, match=r"step-00000002/moments\.safetensors: "):
        train(made)
