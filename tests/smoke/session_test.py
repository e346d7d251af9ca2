"""What a session leaves is seen: here one leaves something of each kind, really, and then is made to leave nothing."""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import pytest

from tests.smoke import session
from tests.smoke.session import Left, run_session
from tests.support.shared_memory import SHARED_MEMORY
from tests.support.shared_memory import shared_memory as names
from training import cli

SEGMENT = "plumbline_session_test"
PORT = 50417
ALONE = [name for _, name in socket.if_nameindex()] == ["lo"]
"""Bazel's sandbox has a network of its own; elsewhere ports are anybody's, and none is reported."""


def a_process(keeps: int = -1) -> None:
    if os.fork() == 0:
        # Closes all else, as a daemon does: the session is not over while somebody may still say something.
        for each in map(int, os.listdir("/proc/self/fd")):
            if each != keeps:
                with contextlib.suppress(OSError):
                    os.close(each)
        time.sleep(60)
        os._exit(0)


def a_port() -> None:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", PORT))
    listening.listen()
    a_process(listening.fileno())


def shared() -> None:
    segment = shared_memory.SharedMemory(SEGMENT, create=True, size=8)
    # Python would remove it, and say so.
    resource_tracker.unregister(f"/{SEGMENT}", "shared_memory")
    segment.close()


def a_file() -> None:
    tempfile.mkstemp(prefix="left-")


def nothing() -> None:
    """As a session should."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Callable[[], None]], Left]]:
    """Has a session do something, and returns what it has left."""
    monkeypatch.setattr(session, "SECONDS_TO_VANISH", 1)
    # By a name that the tests which run beside this one do not take for theirs.
    monkeypatch.setattr(session, "shared_memory", partial(names, [SEGMENT]))

    def left(does: Callable[[], None]) -> Left:
        def main(words: Sequence[str]) -> int:
            assert list(words) == ["sft"]
            does()
            return 7

        monkeypatch.setattr(cli, "main", main)
        ran = run_session(["sft"], tmp_path)
        assert ran.exit_code == 7, ran.complained
        return ran.left

    yield left
    (SHARED_MEMORY / SEGMENT).unlink(missing_ok=True)


def test_a_session_that_leaves_nothing_is_said_to(left: Callable[[Callable[[], None]], Left]) -> None:
    assert left(nothing) == Left()


def test_a_process_that_outlives_its_session_is_named_and_ended(left: Callable[[Callable[[], None]], Left]) -> None:
    found = left(a_process)
    assert len(found.processes) == 1
    number, _, name = found.processes[0].partition(" ")
    assert not Path(f"/proc/{number}").exists()
    assert name in Path("/proc/self/stat").read_text(), "a fork has the name of its parent"
    assert found == Left(processes=found.processes)


def test_a_port_is_seen_while_somebody_listens_on_it(left: Callable[[Callable[[], None]], Left]) -> None:
    found = left(a_port)
    assert len(found.processes) == 1
    assert found.ports == ([PORT] if ALONE else [])


def test_shared_memory_that_is_left_is_named(left: Callable[[Callable[[], None]], Left]) -> None:
    assert left(shared) == Left(shared_memory=[SEGMENT])


def test_shared_memory_that_was_there_before_is_not(left: Callable[[Callable[[], None]], Left]) -> None:
    (SHARED_MEMORY / SEGMENT).touch()
    assert left(nothing) == Left()


def test_a_temporary_file_that_is_left_is_named(left: Callable[[Callable[[], None]], Left]) -> None:
    found = left(a_file)
    assert len(found.temporary) == 1
    assert found.temporary[0].startswith("left-")
    assert found == Left(temporary=found.temporary)
