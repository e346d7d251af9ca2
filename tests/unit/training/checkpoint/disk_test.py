"""A disk that is full, and one that may only be read: the save is refused by name, what was saved stays, and goes on.

The disks are real: file systems in memory, mounted in a namespace of a child's own, which needs no rights. Where a
machine forbids that, the size of files is limited instead, and the directory's permission taken away.
"""

import ctypes
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.checkpoint.lock import only_process
from training.checkpoint.manifest import newest
from training.checkpoint.resume import load
from training.checkpoint.save import save
from training.checkpoint.saver import Content, Saver
from training.errors import CheckpointError, ConfigError

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
BYTES_PER_PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> bool:
    """Whether this process, of one thread, has a namespace of its own in which it may mount."""
    ids = {"uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        return False
    try:
        for name, text in {"setgroups": "deny", **ids}.items():
            Path("/proc/self", name).write_text(text)
    except OSError:
        return False
    return True


def mount(directory: Path, num_bytes: int) -> bool:
    """Puts an empty file system of a size over a directory."""
    directory.mkdir(exist_ok=True)
    return bool(LIBC.mount(b"none", str(directory).encode(), b"tmpfs", 0, f"size={num_bytes}".encode()) == 0)


def forbid_writing(directory: Path, *, is_mounted: bool) -> None:
    if not is_mounted:
        assert os.getuid() != 0, "nothing is forbidden to root, and it may not mount"
        directory.chmod(0o555)
        return
    flags = MS_REMOUNT | MS_BIND | MS_RDONLY
    assert LIBC.mount(None, str(directory).encode(), None, flags, None) == 0, os.strerror(ctypes.get_errno())


def in_child(run: Callable[[], None]) -> None:
    """Runs a function in a process of its own, and fails if it does."""
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "see its traceback"


def content_of(step: int) -> Content:
    """Three pages of tensors, all equal to the step."""
    values = torch.full((3 * BYTES_PER_PAGE // 4,), float(step))
    return {"parameters": {"w": values}, "moments": {"w/exp_avg": values[:1000]}}, {"step": step}


def write(checkpoints: Path, step: int) -> Path:
    tensors, state = content_of(step)
    return save(checkpoints, step, tensors=tensors, state=state, num_kept=2)


def assert_newest(checkpoints: Path, step: int) -> None:
    found = newest(checkpoints)
    assert found is not None
    saved = load(found)
    assert saved.step == step
    assert saved.tensors["parameters"]["w"].eq(step).all()


def save_beside_steps(checkpoints: Path, step: int) -> None:
    def write_content(step: int, content: Content) -> int:
        save(checkpoints, step, tensors=content[0], state=content[1], num_kept=2)
        return 0

    with Saver(lambda: content_of(step), write_content, lambda record: None, asynchronous=True) as saver:
        saver.save(step, goes_on=True)


def problem_of(saves: Callable[[Path, int], object], checkpoints: Path) -> str:
    """What a save says if it fails."""
    try:
        saves(checkpoints, 20)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("saves", [write, save_beside_steps], ids=["before the next step", "beside the steps"])
def test_full_at_every_page_of_a_save_the_checkpoint_before_is_whole_and_room_is_enough_to_go_on(
    tmp_path: Path, saves: Callable[[Path, int], object]
) -> None:
    def fill() -> None:
        is_mounted = own_mounts()
        outcomes = []
        for num_pages in range(9, 40):
            disk = tmp_path / str(num_pages)
            if is_mounted:
                assert mount(disk, num_pages * BYTES_PER_PAGE), os.strerror(ctypes.get_errno())
            write(disk / "checkpoints", 10)
            if not is_mounted:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, ((num_pages - 9) * 1000, resource.RLIM_INFINITY))
            problem = problem_of(saves, disk / "checkpoints")
            outcomes.append(not problem)
            if problem:
                assert "step-00000020: it cannot be written" in problem
                assert "No space left on device" in problem or not is_mounted
                assert_newest(disk / "checkpoints", 10)
                assert not list((disk / "checkpoints").glob(".unfinished*"))
            if not outcomes[-1] and is_mounted:
                size = f"size={64 * BYTES_PER_PAGE}".encode()
                assert LIBC.mount(None, str(disk).encode(), None, MS_REMOUNT, size) == 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if not outcomes[-1]:
                saves(disk / "checkpoints", 20)
            assert_newest(disk / "checkpoints", 20)
        assert outcomes[:5] == [False] * 5, "the first are too small"
        assert outcomes[-1], "the last is large enough"
        assert outcomes == sorted(outcomes)

    in_child(fill)


@pytest.mark.parametrize("saves", [write, save_beside_steps], ids=["before the next step", "beside the steps"])
def test_where_nothing_may_be_written_a_run_is_refused_and_what_was_saved_is_read(
    tmp_path: Path, saves: Callable[[Path, int], object]
) -> None:
    def forbid() -> None:
        disk = tmp_path / "disk"
        is_mounted = own_mounts() and mount(disk, 100 * BYTES_PER_PAGE)
        write(disk, 10)
        forbid_writing(disk, is_mounted=is_mounted)
        with pytest.raises(CheckpointError, match=r"step-00000020: it cannot be written \(\[Errno (30|13)\]"):
            saves(disk, 20)
        assert_newest(disk, 10)
        with pytest.raises(ConfigError, match="cannot be written"), only_process(disk):
            pass
        with pytest.raises(ConfigError, match="cannot be written"), only_process(disk / "new"):
            pass

    in_child(forbid)
