"""One session of a run: the real command line in a process of its own, started, watched, perhaps killed, and accounted.

The process is forked from this one, which has imported what training needs: a cell has several sessions, and importing
costs more than training. It calls `training.cli.main` with the words that a person would type.

A session that is to be killed is killed with SIGKILL from outside, as a queue or a lack of memory would do it, at a
step that does not depend on how busy the machine is: its standard output is a pipe that holds one line, so that it
cannot go on before somebody has read what it said of the step before. Whoever watches reads one line at a time, waits
for the checkpoint that is written beside the steps, and kills two steps after it.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path

from tests.support.shared_memory import shared_memory
from training.checkpoint.manifest import name_of
from training.metrics.records import StepRecord, read_records

SECONDS_MAX = 240.0

STEPS_AFTER_CHECKPOINT = 2
"""Steps that a killed session takes at least between a checkpoint and its death, to be taken again."""

SECONDS_TO_VANISH = 20
"""How long what a session started or made may outlive it: ranks notice within moments that their parent is gone."""

PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Left:
    """What was there after a session and not before it."""

    processes: list[str] = field(default_factory=list)
    shared_memory: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    """Those that a process listens on which is left; seen where the network is the test's own."""
    temporary: list[str] = field(default_factory=list)
    """Names under TMPDIR."""


@dataclass(frozen=True)
class Session:
    """How a session went. Times are those of time.time(), to be compared with those of files."""

    began: float
    ended: float
    """When the last of its processes was gone."""
    exit_code: int
    """Negative if a signal ended it, as in subprocess."""
    memory_peak_bytes: int
    """Of its largest process."""
    said: str
    complained: str
    left: Left


def run_session(
    words: Sequence[str], where: Path, *, kill_after_checkpoint: int | None = None, seconds_max: float = SECONDS_MAX
) -> Session:
    """Types a command in a directory and waits until nothing is left of it.

    Args:
        words: after the program's name.
        where: has the model and the data; out/metrics.jsonl is looked at in it.
        kill_after_checkpoint: kills the process once the checkpoint of this step is committed and
            STEPS_AFTER_CHECKPOINT more are in the metrics.
        seconds_max: a session that takes longer hangs, and is ended.
    """
    # Ranks whose parent was killed become children of this process, and cannot be overlooked.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    temporary = Path(tempfile.mkdtemp(prefix="session-", dir=where))
    shared, ports = shared_memory(), _listening()
    reads, writes = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    fcntl(writes, F_SETPIPE_SZ, os.sysconf("SC_PAGE_SIZE"))
    errors = temporary.with_suffix(".stderr").open("w+b")
    began = time.time()
    pid = os.fork()
    if pid == 0:
        _command(words, where, temporary, writes, errors.fileno())
    os.close(writes)
    said = _watch(pid, reads, where, began + seconds_max, kill_after_checkpoint)
    os.close(reads)
    _, status, usage = os.wait4(pid, 0)
    _await_orphans()
    ended = time.time()
    # A port lives as long as its process, so it is looked for before that is ended.
    listening = sorted(_listening() - ports)
    processes = _end_orphans()
    deadline = time.monotonic() + SECONDS_TO_VANISH
    while (new := sorted(shared_memory() - shared)) and time.monotonic() < deadline:
        time.sleep(0.1)
    errors.seek(0)
    with errors:
        complained = errors.read().decode(errors="replace")
    return Session(
        began=began,
        ended=ended,
        exit_code=os.waitstatus_to_exitcode(status),
        memory_peak_bytes=usage.ru_maxrss * 1024,
        said=said,
        complained=complained,
        left=Left(processes, new, listening, sorted(os.listdir(temporary))),
    )


def _command(words: Sequence[str], where: Path, temporary: Path, stdout: int, stderr: int) -> None:
    """The life of the forked process; does not return."""
    code = 1
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        # A test runner has put its own in their place.
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        os.chdir(where)
        os.environ["TMPDIR"] = str(temporary)
        os.environ.pop("BUILD_WORKING_DIRECTORY", None)
        tempfile.tempdir = None
        from training.cli import main

        code = main(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(pid: int, reads: int, where: Path, deadline: float, kill_after: int | None) -> str:
    """Reads what the session says, until it ends or has to be ended; returns it."""
    said = b""
    while time.time() < deadline:
        if kill_after is not None:
            step = _last_step(where / "out/metrics.jsonl")
            is_committed = (where / "out/checkpoints" / name_of(kill_after)).is_dir()
            if is_committed and step >= kill_after + STEPS_AFTER_CHECKPOINT:
                break
            if step > kill_after and not is_committed:
                # Nothing is read, so no step is taken, until the checkpoint is there.
                time.sleep(0.01)
                continue
        if select.select([reads], [], [], 1.0)[0]:
            line = os.read(reads, 2**16)
            if not line:
                return said.decode(errors="replace")
            said += line
    else:
        said += b"\nended, since it took too long\n"
    os.kill(pid, signal.SIGKILL)
    return said.decode(errors="replace")


def _last_step(metrics: Path) -> int:
    return max((record.step for record in read_records(metrics) if isinstance(record, StepRecord)), default=0)


def _await_orphans() -> None:
    """Waits until every process that the session started is gone, but not for ever."""
    deadline = time.monotonic() + SECONDS_TO_VANISH
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(0.01)


def _end_orphans() -> list[str]:
    """Kills whatever is left of the session's processes, and names it."""
    left = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid_text, _, rest = status.read_text().partition(" (")
        except OSError:
            continue
        name, _, fields = rest.rpartition(") ")
        if int(fields.split()[1]) == os.getpid():
            left.append(f"{pid_text} {name}")
            os.kill(int(pid_text), signal.SIGKILL)
            os.waitpid(int(pid_text), 0)
    return left


def _listening() -> set[int]:
    """Ports that somebody listens on, where nobody but this test can: with loopback as the only interface."""
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        return set()
    listening = "0A"
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if os.path.exists(table) else ():
            _, local, _, state, *_ = line.split()
            if state == listening:
                found.add(int(local.rpartition(":")[2], 16))
    return found
