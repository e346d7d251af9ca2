"""Two machines by the usual rendezvous: torchrun on each; one is lost or taken away, and the run goes on from there.

A machine is a network namespace with an address of its own. A cable joins the two, and can be pulled; they share a file
system, as the nodes of a cluster do.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.distributed.run import main as torchrun

import training.parallel.fsdp  # noqa: F401 - so that forked ranks need not spend seconds on it
from tests.subsystem.processes import Started, environment, is_running, records_of, tensors_of, typed
from tests.support.chats import sums, write_jsonl
from training.checkpoint.manifest import committed
from training.models.tiny import save_tiny

NUM_STEPS = 20
WORDS = ["sft", "--model", "base", "--data", "chat.jsonl", "--device", "cpu", "--num-threads", "1", "--export", "none"]
WORDS += ["--backend", "fsdp", "--num-steps", str(NUM_STEPS), "--samples-per-step", "4", "--steps-between", "4"]
RANKS_PER_NODE = 2
"""Where a machine has more than one."""
HYBRID = ["--shard-ranks", str(RANKS_PER_NODE)]
"""A copy of the weights on each machine."""
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500
"""torchrun's own. It is free, for the network is new."""
VARIABLES = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
"""Of linux/sched.h; Python names them from 3.12 on."""
RANKS = """
import sys
from training.cli import main

# torchrun waits for the value of a function that it has called, and a rank that exits has none.
if code := main():
    sys.exit(code)
"""

SECONDS_OF_PATIENCE = 15
SECONDS_TO_END = 45.0
"""Seen: 5 after a kill; 18 after the cable was pulled, with the patience above. Otherwise half an hour."""


def rendezvous(node: int, ranks: int) -> list[str]:
    """What torchrun is told on each machine, as by a person or a batch system: see docs/pools.md."""
    words = ["--nnodes=2", f"--node-rank={node}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"]
    return [*words, f"--nproc-per-node={ranks}"]


class Machines:
    """Two network namespaces, joined by a cable."""

    def __init__(self) -> None:
        """Puts the cable in."""
        idle = ["sh", "-c", "echo; exec cat"]
        self.holders = [_started(["unshare", "--user", "--map-root-user", "--net", "--", *idle])]
        self.holders.append(_started([*self._on(0), "unshare", "--net", "--", *idle]))
        self._ip(0, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(self.holders[1].pid))
        for node, address in enumerate(ADDRESSES):
            self._ip(node, "address", "add", f"{address}/24", "dev", "eth0")
            self._ip(node, "link", "set", "lo", "up")
            self._ip(node, "link", "set", "eth0", "up")

    def _on(self, node: int) -> list[str]:
        return ["nsenter", f"--target={self.holders[node].pid}", "--user", "--net", "--preserve-credentials", "--"]

    def _ip(self, node: int, *words: str) -> None:
        subprocess.run([*self._on(node), "ip", *words], check=True)

    def pull(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._ip(1, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """As before."""
        self._ip(1, "link", "set", "eth0", "up")

    def typed(
        self, node: int, where: Path, *words: str, program: Sequence[str] = ("-m", "training")
    ) -> "subprocess.Popen[str]":
        """The command as it is typed on a machine, for one rank there."""
        started = [sys.executable, "-m", "torch.distributed.run", *rendezvous(node, 1), *program, *WORDS, *words]
        with (where / f"node-{node}.log").open("w") as log:
            return subprocess.Popen(
                [*self._on(node), *started],
                cwd=where,
                env=environment() | VARIABLES,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def forked(self, node: int, where: Path, *words: str) -> Started:
        """The same for several ranks; it and they are forked, and so have been imported."""
        (where / "ranks.py").write_text(RANKS)
        script = ["--run-path", "--start-method=fork", str(where / "ranks.py")]

        def enter() -> None:
            for kind, file in ((CLONE_NEWUSER, "user"), (CLONE_NEWNET, "net")):
                with open(f"/proc/{self.holders[node].pid}/ns/{file}") as namespace:
                    assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), kind) == 0, ctypes.get_errno()

        return Started(
            *(*rendezvous(node, RANKS_PER_NODE), *script, *WORDS, *words),
            where=where,
            variables=VARIABLES,
            before=enter,
            program=torchrun,
        )

    def close(self) -> None:
        """They are gone with their last process, which a test that failed may have left to run."""
        networks = {os.readlink(f"/proc/{holder.pid}/ns/net") for holder in self.holders}
        networks.discard(os.readlink("/proc/self/ns/net"))
        for process in filter(str.isdecimal, os.listdir("/proc")):
            # It has ended meanwhile, or is somebody else's.
            with suppress(OSError):
                if os.readlink(f"/proc/{process}/ns/net") in networks:
                    os.kill(int(process), signal.SIGKILL)
        for holder in reversed(self.holders):
            holder.communicate()


def _started(command: list[str]) -> "subprocess.Popen[bytes]":
    """A process that has got as far as to print a line."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline(), command
    return process


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two of them."""
    both = Machines()
    yield both
    both.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that both see, with a model and conversations."""
    save_tiny(tmp_path / "base")
    write_jsonl(tmp_path / "chat.jsonl", sums(14))
    return tmp_path


def ranks_of(place: Path, num_ranks: int = 2) -> list[int]:
    """The processes of a run that has begun, in the order of ranks."""
    ranks = [each["process"] for each in json.loads((place / "out/run.json").read_text())["ranks"]]
    assert len(ranks) == num_ranks
    return ranks


def lose(machines: Machines, place: Path, node: int, *words: str, cable: bool) -> float:
    """A run in whose middle a machine is lost; the seconds until all of the other has ended."""
    before = len(committed(place / "out/checkpoints"))
    nodes = [machines.forked(each, place, *words) for each in range(2)]
    for line in nodes[0].stdout:
        if line.startswith("step ") and "loss" in line and len(committed(place / "out/checkpoints")) > before:
            break
    ranks = ranks_of(place, 2 * RANKS_PER_NODE)
    if cable:
        machines.pull()
    began = time.monotonic()
    # Ranks outlive a torchrun that is killed.
    nodes[node].send_signal(signal.SIGKILL)
    for process in ranks[node * RANKS_PER_NODE :][:RANKS_PER_NODE]:
        os.kill(process, signal.SIGKILL)
    assert nodes[node].ended().returncode == -signal.SIGKILL
    left = nodes[1 - node].ended(SECONDS_TO_END)
    seconds = time.monotonic() - began
    assert left.returncode == 1, left.stderr
    assert "ChildFailedError" in left.stderr
    assert not any(map(is_running, ranks))
    assert committed(place / "out/checkpoints")[-1].name < f"step-{NUM_STEPS:08d}", "it was in the middle"
    return seconds


def test_a_machine_is_lost_twice_and_the_run_ends_as_if_none_had_been(machines: Machines, place: Path) -> None:
    """Once without a word, as by a pulled plug; then the one with the rendezvous, whose system closes connections.

    The run that nothing happens to is on one machine, with as many ranks: where they are is no matter.
    """
    whole = typed(*WORDS, *HYBRID, "--out", "whole", "--ranks", str(2 * RANKS_PER_NODE), where=place)
    assert whole.returncode == 0, whole.stderr
    patience = ["--collective-seconds-max", str(SECONDS_OF_PATIENCE)]
    words = [*HYBRID, "--out", "out", "--num-kept", "20"]
    assert lose(machines, place, 1, *words, *patience, cable=True) >= SECONDS_OF_PATIENCE - 1
    machines.plug()
    lose(machines, place, 0, *words, "--resume", "must", cable=False)
    nodes = [machines.forked(node, place, *words, "--resume", "must") for node in range(2)]
    ended = [node.ended() for node in nodes]
    assert [each.returncode for each in ended] == [0, 0], ended[0].stderr
    assert "ranks       4, fsdp" in ended[0].stdout
    assert ended[1].stdout == "", "one rank speaks"
    assert records_of(place / "out") == records_of(place / "whole")
    last = f"checkpoints/step-{NUM_STEPS:08d}"
    ours, theirs = (tensors_of(place / out / last) for out in ("out", "whole"))
    assert ours.keys() == theirs.keys()
    assert not [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


def test_sigterm_to_one_torchrun_saves_at_the_next_step_and_ends_both(machines: Machines, place: Path) -> None:
    """As a queue sends it before it takes a machine away.

    torchrun has one exit code for all that is not the end. What a rank's was is in the log of the one that was left
    alone.
    """
    words = ["--out", "out", "--num-steps", "4000", "--steps-between", "3000"]
    nodes = [machines.typed(node, place, *words) for node in range(2)]
    output = nodes[0].stdout
    assert output is not None
    for line in output:
        if line.startswith("step 3/") and "loss" in line:
            os.kill(nodes[1].pid, signal.SIGTERM)
            break
    said = output.read()
    logs = [(place / f"node-{node}.log").read_text() for node in range(2)]
    assert [node.wait(SECONDS_TO_END) for node in nodes] == [1, 1], logs
    assert "exitcode  : 75 " in logs[0]
    (saved,) = committed(place / "out/checkpoints")
    stopped = int(saved.name.removeprefix("step-"))
    assert 3 <= stopped < 3000
    assert [record.step for record in records_of(place / "out")] == list(range(1, stopped + 1))
    assert f"stopped by SIGTERM; {stopped} of 4000 steps are saved" in said
    assert not any(map(is_running, ranks_of(place)))


RAISING = """
import sys
from training import run
from training.cli import main

def faulty(batch, **options):
    if batch.step == 2 and options["backend"].rank == 1:
        raise ValueError("boom")
    return train_step(batch, **options)

train_step, run.train_step = run.train_step, faulty
sys.exit(main())
"""


def test_a_rank_that_raises_ends_both_machines_and_its_words_are_in_its_log(machines: Machines, place: Path) -> None:
    (place / "raising.py").write_text(RAISING)
    nodes = [machines.typed(node, place, "--out", "out", program=["raising.py"]) for node in range(2)]
    assert [node.wait(SECONDS_TO_END) for node in nodes] == [1, 1]
    # torch writes before each line whose it is.
    said = (place / "node-1.log").read_text().replace("[rank1]: ", "")
    assert 'in faulty\n    raise ValueError("boom")\nValueError: boom\n' in said
    assert not any(map(is_running, ranks_of(place)))
