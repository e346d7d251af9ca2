"""The whole trainer on two ranks: it exports what it trained, and ends as one process would."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.subsystem.processes import records_of
from tests.subsystem.ranks import PLACES, planned
from tests.support.shared_memory import shared_memory
from tests.support.tolerances import RANKS_FP32_RELATIVE
from training import run
from training.checkpoint.manifest import committed
from training.checkpoint.save import save
from training.config import LoraConfig
from training.errors import CheckpointCorrupt, CheckpointError, ExportError, RankFailed
from training.metrics.records import Record, StepRecord
from training.recipes import train
from training.schedule import Schedule
from training.step import train_step

EXPORTING = ["ddp x2", "fsdp x2", "fsdp x4, shards of 2", "fsdp x3, offload"]
EXPORTING += ["zero 1 x2", "zero 2 x2, offload", "zero 3 x2", "zero 3 x2, offload"]


def test_dropout_differs_between_ranks(tmp_path: Path) -> None:
    """Seen where there is none: generators that have drawn differ by how much they drew, whatever they began with."""
    made = planned(tmp_path, num_steps=1)
    train(made)
    checkpoint = Path(made.out) / "checkpoints/step-00000001"
    one, two = (load_file(checkpoint / f"random-0000{rank}-of-00002.safetensors")["cpu"] for rank in (1, 2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["all weights", "lora"])
def test_every_backend_exports_what_one_process_exports(tmp_path: Path, lora: LoraConfig | None) -> None:
    kinds: Any = ("adapter", "merged") if lora else ("model",)
    # At this rate an adapter's B, which is zero at first, is thousands of times what the bound below lets pass.
    schedule = Schedule("constant", 1e-2, 0.0, 0.2, 0.0)
    exported: dict[str, dict[str, torch.Tensor]] = {}
    for place in ("one process", *EXPORTING):
        out = tmp_path / place
        changed = {"lora": lora, "exports": kinds, "epsilon": 1e-4, "num_steps": 2, "schedule": schedule}
        made = planned(tmp_path, out=str(out), **changed, **PLACES[place])
        assert train(made).exports == {kind: str(out / kind) for kind in kinds}
        files = sorted(out.glob("*/*.safetensors"))
        assert [file.parent.name for file in files] == list(kinds)
        exported[place] = {f"{at.parent.name}/{name}": value for at in files for name, value in load_file(at).items()}
    alone = exported.pop("one process")
    assert len(alone) >= 20 * len(kinds)
    for place, tensors in exported.items():
        assert tensors.keys() == alone.keys()
        for name, value in alone.items():
            assert value.abs().max() > 0, f"{name} is empty"
            difference = (tensors[name] - value).abs().max()
            assert difference <= RANKS_FP32_RELATIVE * max(1, value.abs().max()), (place, name)


def test_an_export_may_take_longer_than_ranks_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So may loading the model that the weights of all ranks are put into."""

    def slowly(does: Callable[..., Any], *, after: int) -> Callable[..., Any]:
        called: list[None] = []

        def late(*arguments: Any, **options: Any) -> Any:
            called.append(None)
            time.sleep(2.5 if len(called) > after else 0)
            return does(*arguments, **options)

        return late

    monkeypatch.setattr(run, "load_model", slowly(run.load_model, after=1))
    monkeypatch.setattr(run, "export", slowly(run.export, after=0))
    made = planned(tmp_path, backend="fsdp", num_steps=1, exports=("model",), collective_seconds_max=2)
    assert Path(train(made).exports["model"]).is_dir()


def test_an_export_that_fails_ends_all_ranks_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Path:
        raise ExportError("out/model", got="other logits", expected="those of the trained model", hint="none")

    monkeypatch.setattr(run, "export", fail)
    with pytest.raises(ExportError, match=r"^out/model: other logits; expected those"):
        train(planned(tmp_path, num_steps=1, exports=("model",), **PLACES["fsdp x2"]))
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == ""


def at_step(chosen: int, rank: int, does: Callable[[], object]) -> Callable[..., StepRecord]:
    """A step before which one rank does something, once."""

    def step(batch: Any, **options: Any) -> StepRecord:
        if batch.step == chosen and options["backend"].rank == rank:
            does()
        return train_step(batch, **options)

    return step


@pytest.mark.parametrize("place", ["ddp x2", "fsdp x2", "zero 3 x2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_raises_ends_the_run_which_then_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: str, rank: int
) -> None:
    def fail() -> None:
        raise ValueError("boom")

    made = planned(tmp_path, num_steps=3, checkpoint_steps_between=1, **PLACES[place])
    with monkeypatch.context() as patch:
        patch.setattr(run, "train_step", at_step(2, rank, fail))
        with pytest.raises(RankFailed, match=rf"^rank {rank}: ValueError: boom; .* hint: its traceback is above"):
            train(made)
    assert f"rank {rank}: Traceback" in capfd.readouterr().err
    assert committed(Path(made.out) / "checkpoints")[-1].name == "step-00000002"
    assert train(replace(made, resume="must")).num_steps == 3


@pytest.mark.parametrize("place", ["ddp x2", "fsdp x2", "zero 1 x2", "zero 2 x2", "zero 3 x2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_in_a_step_leaves_no_process_and_no_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, rank: int
) -> None:
    shared_before = shared_memory()
    monkeypatch.setattr(run, "train_step", at_step(1, rank, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    with pytest.raises(RankFailed, match=rf"^rank {rank}: it was killed by SIGKILL"):
        train(planned(tmp_path, num_steps=2, **PLACES[place]))
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == ""
    assert shared_memory() <= shared_before


@pytest.mark.parametrize("place", ["ddp x2", "fsdp x2", "zero 2 x2", "zero 3 x2", "fsdp x4, shards of 2"])
def test_a_rank_that_hangs_ends_the_run_after_the_seconds_that_were_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """In the backward pass, where the others wait for it in groups that the backend has made."""

    def step(batch: Any, **options: Any) -> StepRecord:
        backend = options["backend"]
        if backend.rank == 1:
            monkeypatch.setattr(backend, "backward", lambda *_, **__: time.sleep(300))
        return train_step(batch, **options)

    monkeypatch.setattr(run, "train_step", step)
    began = time.monotonic()
    with pytest.raises(RankFailed, match=r"^rank \d: RuntimeError: .*[Tt]imed out.* hint: .* --collective-seconds-max"):
        train(planned(tmp_path, num_steps=2, collective_seconds_max=2, **PLACES[place]))
    assert 2 <= time.monotonic() - began < 30


def test_patience_ends_all_ranks_after_the_same_step_and_the_run_is_finished(tmp_path: Path) -> None:
    impatient = {"patience": 1, "improvement_min": 10.0, "validation_steps_between": 1, "exports": ("model",)}
    summary = train(planned(tmp_path, backend="fsdp", **impatient))
    assert (summary.stopped_by, summary.num_steps, summary.is_finished) == ("patience", 1, True)
    assert Path(summary.exports["model"]).is_dir()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "train_step", at_step(2, rank, terminate))
    summary = train(planned(tmp_path))
    assert (summary.stopped_by, summary.num_steps) == ("SIGTERM", 3)
    assert [each.name for each in committed(tmp_path / "out/checkpoints")] == ["step-00000003"]


@pytest.mark.parametrize("rank", [1, 2])
def test_a_lost_or_damaged_shard_is_refused_by_the_name_of_its_file(tmp_path: Path, rank: int) -> None:
    made = planned(tmp_path, backend="fsdp", num_steps=1)
    train(made)
    shard = Path(made.out) / f"checkpoints/step-00000001/moments-0000{rank}-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=rf"{shard.name}: its content has another SHA-256"):
        train(made)
    shard.unlink()
    with pytest.raises(CheckpointCorrupt, match=rf"{shard.name}: the file is not there"):
        train(made)


BESIDE = pytest.mark.parametrize("asynchronous", [False, True], ids=["before the next step", "beside the steps"])


def saving(during: Callable[[int, str], object]) -> Callable[..., Path]:
    """A save that calls `during` with the rank and each boundary that it is about to cross after step 4."""

    def save_and_tell(checkpoints: Path, at: int, **options: Any) -> Path:
        rank = options["ranks"].rank
        return save(checkpoints, at, on_boundary=lambda name: at == 4 and during(rank, name), **options)

    return save_and_tell


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Record]]:
    """The records of a run at a place to which nothing happens."""

    @cache
    def records(place: str) -> list[Record]:
        made = planned(tmp_path_factory.mktemp("whole"), num_steps=5, **PLACES[place])
        train(made)
        return records_of(Path(made.out))

    return records


@pytest.mark.parametrize(
    ("place", "rank", "boundary", "newest", "asynchronous"),
    [
        ("fsdp x2", 0, "make directory", 2, False),
        ("fsdp x2", 0, "write parameters", 2, True),
        ("fsdp x2", 0, "tear moments", 2, False),
        ("fsdp x2", 0, "write manifest", 2, False),
        ("fsdp x2", 0, "commit", 2, True),
        ("fsdp x2", 0, "flush commit", 4, False),
        ("fsdp x2", 1, "write parameters", 2, True),
        ("fsdp x2", 1, "tear parameters", 2, False),
        ("fsdp x2", 1, "flush moments", 2, True),
        ("fsdp x2", 1, "tear random", 2, False),
        ("fsdp x2", 1, "flush random", 2, True),
        ("zero 3 x2", 0, "flush parameters", 2, False),
        ("zero 3 x2", 0, "move pointer", 4, True),
        ("zero 3 x2", 1, "tear moments", 2, False),
    ],
)
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before_or_the_new_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], list[Record]],
    place: str,
    rank: int,
    boundary: str,
    newest: int,
    asynchronous: bool,
) -> None:
    """Saved before the next step, or beside the steps. `tear` is in the middle of a file."""
    made = planned(tmp_path, num_steps=5, checkpoint_steps_between=2, asynchronous=asynchronous, **PLACES[place])

    def kill(at: int, name: str) -> None:
        if at == rank and name.startswith(boundary):
            os.kill(os.getpid(), signal.SIGKILL)

    def save_and_tear(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        torn = f"tear {path.name}".startswith(f"{boundary}-{rank + 1:05d}")
        if torn and path.parent.name.endswith("step-00000004"):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    # Ranks are forked from this process, so they save with what is put in place here.
    with monkeypatch.context() as patch:
        patch.setattr(run, "save", saving(kill))
        patch.setattr("training.checkpoint.save.save_file", save_and_tear)
        with pytest.raises(RankFailed, match=rf"^rank {rank}: it was killed by SIGKILL"):
            train(made)
    assert committed(Path(made.out) / "checkpoints")[-1].name == f"step-{newest:08d}"
    train(replace(made, resume="must"))
    assert records_of(Path(made.out)) == whole(place)


@BESIDE
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_write_stops_all_with_an_error_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, asynchronous: bool
) -> None:
    def fill_the_disk(rank: int, name: str) -> None:
        if rank == failing and name.startswith("flush moments"):
            raise OSError("No space left on device")

    monkeypatch.setattr(run, "save", saving(fill_the_disk))
    made = planned(tmp_path, backend="fsdp", num_steps=7, checkpoint_steps_between=2, asynchronous=asynchronous)
    with pytest.raises(CheckpointError, match=r"step-00000004: it cannot be written \(.*No space left on device\)"):
        train(made)
    assert [each.name for each in committed(Path(made.out) / "checkpoints")] == ["step-00000002"]
