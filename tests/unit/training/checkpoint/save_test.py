"""Killed at any boundary of a save, a run has its last committed checkpoint, whole, and can save again."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from training.checkpoint.manifest import best, committed, newest, verified
from training.checkpoint.resume import load
from training.checkpoint.save import save
from training.errors import CheckpointError


def write(checkpoints: Path, step: int, **options: object) -> Path:
    """Saves tensors that are all equal to the step, so that whose they are can be read off them."""
    tensors = {
        "parameters": {"w": torch.full((3,), float(step)), "b": torch.full((1,), float(step))},
        "moments": {"w/step": torch.tensor(float(step))},
    }
    return save(checkpoints, step, tensors=tensors, state={"step": step}, **{"num_kept": 2} | options)  # type: ignore[arg-type]  # options are of mixed types


def boundaries(checkpoints: Path) -> list[str]:
    """Every boundary of the third save of a run, the first one that also rotates."""
    write(checkpoints, 10)
    write(checkpoints, 20)
    names: list[str] = []
    write(checkpoints, 30, on_boundary=names.append)
    return names


def content(checkpoint: Path) -> set[float]:
    saved = load(checkpoint)
    values = {
        value for tensors in saved.tensors.values() for each in tensors.values() for value in each.flatten().tolist()
    }
    return values | {float(saved.step), float(saved.state["step"])}


def in_child(run: "object", *arguments: object) -> int:
    """Runs a function in a forked process and returns how that ended, as os.waitpid says it."""
    child = os.fork()
    if child == 0:
        try:
            run(*arguments)  # type: ignore[operator]  # callers pass functions
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def die_at(checkpoints: Path, step: int, boundary: int) -> None:
    crossed = -1

    def on_boundary(name: str) -> None:
        nonlocal crossed
        crossed += 1
        if crossed == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    write(checkpoints, step, on_boundary=on_boundary)


def test_checkpoint_holds_what_was_saved_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    assert content(path) == {10.0}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["latest", "step-00000010"]
    assert (tmp_path / "latest").read_text() == "step-00000010\n"


def test_boundaries_are_all_there(tmp_path: Path) -> None:
    names = boundaries(tmp_path)
    assert len(names) == len(set(names))
    assert [name for name in names if "tear" not in name and "flush" not in name] == [
        "clear leftovers",
        "make directory",
        "write parameters.safetensors",
        "write moments.safetensors",
        "write state.json",
        "write manifest",
        "write pointer",
        "commit",
        "move pointer",
        "rotate step-00000010",
        "delete step-00000010",
    ]


@pytest.mark.parametrize("num_before", [0, 1, 2])
def test_killed_at_every_boundary_the_last_committed_checkpoint_is_whole(tmp_path: Path, num_before: int) -> None:
    step = 10 * (num_before + 1)
    names = boundaries(tmp_path / "names")
    commit = names.index("commit")
    last = len(names) if num_before == 2 else len(names) - 2
    for boundary in range(last):
        checkpoints = tmp_path / str(boundary)
        for before in range(num_before):
            write(checkpoints, 10 * (before + 1))
        status = in_child(die_at, checkpoints, step, boundary)
        assert os.WIFSIGNALED(status), names[boundary]
        assert os.WTERMSIG(status) == signal.SIGKILL, names[boundary]
        found = newest(checkpoints)
        expected = step if boundary > commit else step - 10
        if expected == 0:
            assert found is None, names[boundary]
        else:
            assert found is not None, names[boundary]
            assert content(found) == {float(expected)}, names[boundary]
        for each in committed(checkpoints):
            verified(each)
        # The run goes on: from there it takes the same steps and saves again, over whatever was left.
        assert content(write(checkpoints, expected + 10)) == {float(expected + 10)}
        assert newest(checkpoints) == checkpoints / f"step-{expected + 10:08d}"
        assert not [each.name for each in checkpoints.iterdir() if each.name.startswith(".")], names[boundary]
        assert len(committed(checkpoints)) <= 2


def test_everything_is_on_disk_before_what_depends_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pulled plug cannot be had in a test; that the system was asked to write, and when, can be."""
    crossed: list[str] = []
    flush = os.fsync

    def noting(descriptor: int) -> None:
        flush(descriptor)
        crossed.append(f"flushed {os.path.relpath(os.readlink(f'/proc/self/fd/{descriptor}'), tmp_path)}")

    monkeypatch.setattr(os, "fsync", noting)
    path = write(tmp_path, 10, on_boundary=crossed.append)
    commit, move = crossed.index("commit"), crossed.index("move pointer")
    unfinished = ".unfinished-step-00000010"
    files = {f"flushed {unfinished}/{each.name}" for each in path.iterdir()}
    assert len(files) == 4
    # The next pointer too: nothing is written after a commit, which a full disk would leave half done.
    assert set(crossed[:commit]) >= files | {f"flushed {unfinished}", "flushed .unfinished-latest"}
    assert "flushed ." in crossed[commit:move]
    assert "flushed ." in crossed[move:]


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step, num_kept=3)
    assert [path.name for path in committed(tmp_path)] == ["step-00000030", "step-00000040", "step-00000050"]


def test_rotation_keeps_the_best_beside_the_newest(tmp_path: Path) -> None:
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: None, 50: 4.0, 60: 5.0, 70: 1.0}
    for step, loss in losses.items():
        write(tmp_path, step, num_best_kept=2, validation_loss=loss)
        kept = [int(path.name.removeprefix("step-")) for path in committed(tmp_path)]
        assert set(kept) >= {each for each in losses if step - 10 <= each <= step}
        for path in committed(tmp_path):
            verified(path)
    # 70 is as good as 20, and among the newest anyway; without a loss, 40 is never among the best.
    assert kept == [20, 60, 70]
    assert [path.name for path in best(tmp_path, 2)] == ["step-00000020", "step-00000070"]
    (tmp_path / "step-00000020/manifest.json").write_text("{")
    write(tmp_path, 80, num_best_kept=2, validation_loss=6.0)
    assert [path.name for path in committed(tmp_path)] == ["step-00000060", "step-00000070", "step-00000080"]


def test_error_at_any_boundary_before_the_commit_leaves_the_old_checkpoints_alone(tmp_path: Path) -> None:
    names = boundaries(tmp_path / "names")
    for boundary in names[: names.index("commit") + 1]:
        checkpoints = tmp_path / boundary.replace(" ", "-")
        write(checkpoints, 10)

        def full(name: str, boundary: str = boundary) -> None:
            if name == boundary:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(CheckpointError) as refused:
            write(checkpoints, 20, on_boundary=full)
        assert str(refused.value) == (
            f"{checkpoints}/step-00000020: it cannot be written ([Errno 28] No space left on device); expected a "
            "directory with room for the weights and two moments of each. hint: make room or choose another --out; the "
            "checkpoints before this one are untouched"
        )
        assert sorted(each.name for each in checkpoints.iterdir()) == ["latest", "step-00000010"]
        assert content(checkpoints / "step-00000010") == {10.0}


def test_disk_that_takes_only_so_much_is_an_error_and_not_a_checkpoint(tmp_path: Path) -> None:
    def limited(num_bytes: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        try:
            write(tmp_path, 20)
        except CheckpointError:
            os.kill(os.getpid(), signal.SIGUSR1)

    write(tmp_path, 10)
    for num_bytes in (0, 1, 50, 100, 150, 300):
        status = in_child(limited, num_bytes)
        assert os.WIFSIGNALED(status), num_bytes
        assert os.WTERMSIG(status) == signal.SIGUSR1, num_bytes
        found = newest(tmp_path)
        assert found is not None
        assert content(found) == {10.0}
        assert not [each.name for each in tmp_path.iterdir() if each.name.startswith(".unfinished-step")]


def test_saving_over_a_committed_checkpoint_is_refused(tmp_path: Path) -> None:
    """Before anything is written: whether a rename would refuse to replace it is up to the file system."""
    write(tmp_path, 10)
    crossed: list[str] = []
    with pytest.raises(CheckpointError, match=r"step-00000010: it cannot be written .*File exists"):
        write(tmp_path, 10, on_boundary=crossed.append)
    assert not crossed
    assert content(tmp_path / "step-00000010") == {10.0}


def test_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="it cannot be written"):
        write(tmp_path / "file", 10)
