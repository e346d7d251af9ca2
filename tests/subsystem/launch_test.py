"""Ranks start, agree and end together: whichever fails, however it fails, nothing of the run is left."""

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.subsystem.processes import is_running
from tests.support.shared_memory import shared_memory
from training.errors import DataError, PlumblineError, RankFailed
from training.parallel.ddp import Ddp
from training.parallel.first import on_first
from training.parallel.launch import launch
from training.parallel.world import World, joined

SECONDS_MAX = 45.0
"""An end that took longer waited for a time-out, of which the shortest is a minute. Seen: under 2 seconds, and 18 where
spawned ranks had to import torch on a busy machine."""

PARENT_IS_KILLED = "SIGKILL to the parent"
"""Then nobody is left to remove the file through which ranks have met."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory in which ranks leave their traces; afterwards each process, port and file must be gone."""
    shared_before = shared_memory()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    began = time.monotonic()
    yield tmp_path
    assert time.monotonic() - began < SECONDS_MAX
    traces = list(tmp_path.glob("rank-*"))
    assert traces, "ranks have started"
    for trace in traces:
        pid, *ports = map(int, trace.read_text().split())
        assert not is_running(pid)
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
    assert shared_memory() <= shared_before
    assert not os.listdir(temporary) or PARENT_IS_KILLED in request.node.name


def listening_ports() -> list[int]:
    """The TCP ports on which this process takes connections."""
    mine = {os.readlink(each.path) for each in os.scandir("/proc/self/fd") if os.path.islink(each.path)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]


def member(place: Path, then: Callable[[World], object], world: World) -> object:
    """Joins the world, leaves a trace, and does something."""
    with joined(world, "cpu", seconds_max=60):
        (place / f"rank-{world.rank}").write_text(" ".join(map(str, [os.getpid(), *listening_ports()])))
        distributed.barrier()
        return then(world)


def add_up(world: World) -> float:
    total = torch.tensor(float(world.rank + 1))
    distributed.all_reduce(total)
    return total.item() + 10 * world.rank


def test_answer_is_that_of_rank_0(place: Path) -> None:
    assert launch(partial(member, place, add_up), 3, method="fork") == 6.0
    assert all(" " in trace.read_text() for trace in place.glob("rank-*")), "ranks had ports to leave behind"


def test_what_a_rank_has_inherited_is_no_matter_of_its_garbage_collector(place: Path) -> None:
    assert (
        launch(partial(member, place, lambda world: gc.get_freeze_count()), 1, method="fork")
        > len(gc.get_objects()) / 2
    )


def test_spawned_ranks_answer_as_forked_ones(place: Path) -> None:
    """As on an accelerator: nothing is inherited, everything is pickled."""
    program = f"""
from functools import partial
from pathlib import Path
from tests.subsystem.launch_test import add_up, member
from training.parallel.launch import launch
if __name__ == "__main__":
    print(launch(partial(member, Path({str(place)!r}), add_up), 2, method="spawn"))
"""
    (place / "spawning.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
    ran = subprocess.run(
        [sys.executable, str(place / "spawning.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "3.0", ran.stderr


def failing(failing_rank: int, how: Callable[[], object], world: World) -> None:
    if world.rank == failing_rank:
        how()
    # The others wait for the one that does not come.
    distributed.barrier()
    distributed.barrier()


def raise_value_error() -> None:
    raise ValueError("boom")


def raise_ours() -> None:
    raise DataError("chat.jsonl:3", got="nothing", expected="something", hint="none")


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_natively() -> None:
    ctypes.string_at(0)


WAYS: dict[str, tuple[Callable[[], object], str]] = {
    "raises": (raise_value_error, "ValueError: boom; expected every rank to reach the end"),
    "is killed": (kill_myself, "it was killed by SIGKILL; expected every rank"),
    "crashes": (fail_natively, "it was killed by SIGSEGV; expected every rank"),
    "leaves": (partial(os._exit, 5), "it ended with exit code 5 and without a word; expected every rank"),
}


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_one_rank_ends_them_all_and_is_named(
    place: Path, rank: int, way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    how, words = WAYS[way]
    with pytest.raises(RankFailed) as failed:
        launch(partial(member, place, partial(failing, rank, how)), 3, method="fork")
    assert str(failed.value).startswith(f"rank {rank}: {words}")
    assert failed.value.exit_code == 8
    shown = capfd.readouterr().err
    if way == "raises":
        assert f"rank {rank}: Traceback" in shown
        assert "in raise_value_error" in shown


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_error_of_ours_arrives_as_it_was_raised(place: Path, rank: int) -> None:
    with pytest.raises(DataError, match=r"^chat.jsonl:3: nothing; expected something. hint: none$") as failed:
        launch(partial(member, place, partial(failing, rank, raise_ours)), 3, method="fork")
    assert "in raise_ours" in str(failed.value.__cause__)


def test_a_rank_that_never_joined_is_named(place: Path) -> None:
    def before_joining(world: World) -> object:
        (place / f"rank-{world.rank}").write_text(str(os.getpid()))
        if world.rank == 1:
            raise_value_error()
        return member(place, add_up, world)

    with pytest.raises(RankFailed, match=r"^rank 1: ValueError: boom"):
        launch(before_joining, 2, method="fork")


def test_a_rank_that_hangs_is_given_up(place: Path) -> None:
    def hanging(world: World) -> None:
        with joined(world, "cpu", seconds_max=2):
            (place / f"rank-{world.rank}").write_text(str(os.getpid()))
            if world.rank == 1:
                time.sleep(300)
            distributed.barrier()

    with pytest.raises(RankFailed, match=r"^rank 0: RuntimeError: .*[Tt]imed out"):
        launch(hanging, 2, method="fork")


def first(place: Path, work: Callable[[], object], world: World) -> None:
    """Rank 0 alone does something that may take longer than a rank waits for another; each leaves how it went."""
    with joined(world, "cpu", seconds_max=1) as device:
        (place / f"rank-{world.rank}").write_text(str(os.getpid()))
        said = place / f"said-{world.rank}"
        try:
            said.write_text(str(on_first(Ddp(world, device, "fp32"), work)))
        except PlumblineError as error:
            said.write_text(str(error))
            raise


def said(place: Path) -> list[str]:
    return [(place / f"said-{rank}").read_text() for rank in range(3)]


def slowly() -> str:
    time.sleep(2.5)
    return "done"


def test_ranks_wait_for_what_rank_0_does_alone_longer_than_for_each_other(place: Path) -> None:
    launch(partial(first, place, slowly), 3, method="fork")
    assert said(place) == ["done", "None", "None"]


def test_an_error_of_what_rank_0_does_alone_is_that_of_all(place: Path) -> None:
    with pytest.raises(DataError, match=r"^chat.jsonl:3: nothing"):
        launch(partial(first, place, raise_ours), 3, method="fork")
    (error,) = set(said(place))
    assert error.startswith("chat.jsonl:3: nothing")


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (raise_value_error, r"rank 0: ValueError: boom"),
        (kill_myself, r"rank 0: it was killed by SIGKILL"),
        (freeze, r"rank [12]: RuntimeError: .*[Tt]imed out"),
    ],
    ids=["raises", "is killed", "hangs"],
)
def test_ranks_wait_no_longer_than_rank_0_is_there(place: Path, how: Callable[[], object], words: str) -> None:
    with pytest.raises(RankFailed, match=f"^{words}"):
        launch(partial(first, place, how), 3, method="fork")


def wait_for_ever(world: World) -> None:
    time.sleep(300)


def start_and_signal(place: Path, number: signal.Signals) -> int:
    """The exit code of a process that launched two ranks, and got a signal once both were at work."""
    process = os.fork()
    if process == 0:
        code = 99
        try:
            launch(partial(member, place, wait_for_ever), 2, method="fork")
        except SystemExit as ended:
            code = int(str(ended.code))
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    while len(list(place.glob("rank-*"))) < 2:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process, number)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["SIGTERM", "SIGUSR1", "SIGINT", PARENT_IS_KILLED],
)
def test_a_signal_to_the_parent_reaches_ranks_that_are_busy_elsewhere(
    place: Path, number: signal.Signals, code: int
) -> None:
    assert start_and_signal(place, number) == code
    # A parent that was killed could not wait for its ranks; they notice.
    time.sleep(1.0 if number == signal.SIGKILL else 0.0)
