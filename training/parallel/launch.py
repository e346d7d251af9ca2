"""Starts the ranks of a run on this machine, and ends all of them as soon as one has failed.

    parent      makes the file through which ranks find each other, passes signals on, waits
    ranks       do the work and report; a rank whose parent dies, dies

The first failure is reported, not the first noticed: when one rank is gone the others lose their connection to it and
fail as well, and those errors say nothing. A rank reports before it dies, so its own words come first; a rank that was
killed says nothing, and then lost connections are not believed.

On a CPU ranks are forked, after whatever the parent has imported: on a small machine imports cost seconds for each
rank. The parent must not have computed with several threads before, for a fork has none of them and waits for them for
ever. A process that has looked at an accelerator cannot be forked, so there ranks start afresh.
"""

import gc
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Generic, Literal, TypeVar

from training.errors import PlumblineError, RankFailed
from training.parallel.world import World

T = TypeVar("T")

SIGNALS_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

WORDS_OF_A_LOST_PEER = (
    "onnection closed by peer",
    "onnection reset by peer",
    "Broken pipe",
    "remote process exited",
)
"""What gloo and NCCL say of a rank that is gone."""

SECONDS_FOR_OTHER_REPORTS = 0.5
"""How long failures of other ranks are collected, of which the first counts. No setting: ranks tell their failures over
a pipe of this machine, before they die of them, so whoever failed first has said so within milliseconds."""

SECONDS_TO_END = 60
"""How long a rank may take to end after its last word, by when it waits for no other. No setting: what is left is
giving memory back to the system, which takes seconds for hundreds of GB, and an end that hangs has lost nothing."""


class OfRank(Exception):
    """The traceback of a rank, as the cause of the error that it led to here."""


@dataclass(frozen=True)
class _Done(Generic[T]):
    answer: T | None


@dataclass(frozen=True)
class _Failed:
    rank: int
    at: float
    words: str
    """Its last line, or how it died."""
    trace: str = ""
    error: BaseException | None = None
    """If it is one that means something to the parent."""
    died_by: int = 0
    """Number of the signal that killed it."""

    @property
    def lost_a_peer(self) -> bool:
        """True if it failed because another rank had."""
        return any(each in self.words for each in WORDS_OF_A_LOST_PEER)


def launch(work: Callable[[World], T], num_ranks: int, *, method: Literal["fork", "spawn"]) -> T:
    """Calls `work` in `num_ranks` processes of this machine and returns what rank 0 returned.

    When it returns or raises, all of them have ended.

    Args:
        work: is told its place in the world, and joins it. Must be picklable to be spawned.
        num_ranks: how many.
        method: `fork` shares what is imported; `spawn` is for accelerators.

    Raises:
        PlumblineError: the first that a rank raised, as it raised it.
        RankFailed: a rank raised something else, which has been printed, or died.
        KeyboardInterrupt: a second Ctrl-C, or one before the ranks were ready for it.
        SystemExit: a signal that was passed on ended a rank that was not ready for it.
    """
    context: Any = multiprocessing.get_context(method)
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    meeting = tempfile.mkdtemp(prefix="plumbline-ranks-")
    try:
        with _passing_on_signals(processes) as passed_on:
            for rank in range(num_ranks):
                ours, theirs = context.Pipe()
                world = World(rank, num_ranks, rank, num_ranks, store_path=os.path.join(meeting, "store"))
                process = context.Process(target=_rank, args=(work, world, theirs), name=f"rank {rank}")
                _start(process)
                processes.append(process)
                pipes.append(ours)
                theirs.close()
            answer: T = _answer(pipes, processes, passed_on)
            return answer
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
            process.close()
        for pipe in pipes:
            pipe.close()
        shutil.rmtree(meeting, ignore_errors=True)


def _start(process: BaseProcess) -> None:
    """Starts a rank with signals held back until it has handlers of its own: a fork has the parent's at first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_PASSED_ON)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _passing_on_signals(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Hands signals to the ranks instead of ending this process; yields the numbers of those that came."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(number)
        for process in processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)

    # Python delivers signals to the main thread alone and refuses to set handlers elsewhere.
    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, pass_on) for each in SIGNALS_PASSED_ON} if is_main else {}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _answer(pipes: Sequence[Connection], processes: Sequence[BaseProcess], passed_on: Sequence[int]) -> Any:
    """Waits for every rank; returns rank 0's answer or raises the first failure."""
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    failures: list[_Failed] = []
    answer = None
    while waiting:
        ready = wait(list(waiting), timeout=SECONDS_FOR_OTHER_REPORTS if failures else None)
        if not ready:
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            report = _report(rank, pipe, processes[rank])
            if isinstance(report, _Failed):
                failures.append(report)
            elif rank == 0:
                answer = report.answer
    if failures:
        _raise(min(failures, key=lambda each: (each.lost_a_peer, each.at)), passed_on)
    for rank, process in enumerate(processes):
        process.join(SECONDS_TO_END)
        if process.exitcode != 0:
            _raise(_died(rank, process.exitcode), passed_on)
    return answer


def _report(rank: int, pipe: Connection, process: BaseProcess) -> _Done[Any] | _Failed:
    try:
        report = pipe.recv()
    except (EOFError, OSError):
        process.join(SECONDS_TO_END)
        return _died(rank, process.exitcode)
    assert isinstance(report, (_Done, _Failed))
    return report


def _died(rank: int, exit_code: int | None) -> _Failed:
    if exit_code is None:
        return _Failed(rank, time.monotonic(), f"it said no more and did not end within {SECONDS_TO_END} s")
    if exit_code < 0:
        words = f"it was killed by {signal.Signals(-exit_code).name}"
        return _Failed(rank, time.monotonic(), words, died_by=-exit_code)
    return _Failed(rank, time.monotonic(), f"it ended with exit code {exit_code} and without a word")


def _raise(failed: _Failed, passed_on: Sequence[int]) -> None:
    if failed.died_by in passed_on:
        raise SystemExit(128 + failed.died_by)
    if failed.error is not None:
        raise failed.error from OfRank(f"rank {failed.rank}\n{failed.trace}")
    if failed.trace:
        print(f"rank {failed.rank}: {failed.trace}", file=sys.stderr, end="", flush=True)
    raise RankFailed(
        f"rank {failed.rank}",
        got=failed.words,
        expected="every rank to reach the end; the others were ended with it",
        hint=_hint(failed),
    )


def _hint(failed: _Failed) -> str:
    if "timed out" in failed.words.lower():
        return (
            "another rank did not come: look at what that one was at, or have it waited for by --collective-seconds-max"
        )
    if failed.trace:
        return "its traceback is above"
    if failed.died_by == signal.SIGKILL:
        return "a system that lacks memory ends a process so: take fewer ranks or a smaller --tokens-per-rank-max"
    return "look at what it printed, and whether one process alone does the same"


def _rank(work: Callable[[World], Any], world: World, pipe: Connection) -> None:
    """The life of a rank."""
    # Out of the terminal's process group: a Ctrl-C typed there reaches the parent alone, which passes it on once.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS_PASSED_ON)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # What has been imported stays: the collector need not look at it again, of which it would make a copy.
    gc.freeze()
    try:
        answer = work(world)
        pipe.send(_Done(answer if world.rank == 0 else None))
    except BaseException as error:
        trace = traceback.format_exc()
        words = traceback.format_exception_only(error)[-1].strip()
        is_known = isinstance(error, (PlumblineError, KeyboardInterrupt))
        pipe.send(_Failed(world.rank, time.monotonic(), words, trace, error if is_known else None))
        # At once: what python does at its end could wait for other ranks.
        sys.stdout.flush()
        os._exit(1)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
