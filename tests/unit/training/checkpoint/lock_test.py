"""One process to a run, for as long as it lives and no longer."""

import os
import signal
from pathlib import Path

import pytest

from training.checkpoint.lock import only_process
from training.errors import CheckpointError, ConfigError


def held_by_child(out: Path) -> int:
    """Forks a process that holds the directory until it is killed; returns its number once it does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with only_process(out):
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return child


def test_second_process_is_refused_and_may_begin_once_the_first_is_killed(tmp_path: Path) -> None:
    child = held_by_child(tmp_path / "out")
    with pytest.raises(CheckpointError) as refused, only_process(tmp_path / "out"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert str(refused.value) == (
        f"{tmp_path}/out: another process is training there; expected one process to a run. hint: wait for it, stop "
        "it, or choose another --out"
    )
    with only_process(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()


def test_place_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refused, only_process(tmp_path / "file"):
        pass
    assert str(refused.value).startswith(f"run.out: {tmp_path}/file cannot be written (")
    assert str(refused.value).endswith(
        "; expected a directory to write to, or a place to make one. hint: choose another --out"
    )
