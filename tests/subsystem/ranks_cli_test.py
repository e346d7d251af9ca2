"""The command line on two ranks: one voice, one exit code, and an end that all agree upon."""

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.subsystem.processes import command, environment, records_of, typed
from tests.support.chats import sums, write_jsonl
from training.checkpoint.manifest import committed
from training.errors import EXIT_INTERRUPTED, RankFailed, SampleError
from training.metrics.records import StepRecord
from training.models.tiny import save_tiny

WORDS = ["sft", "--model", "base", "--data", "chat.jsonl", "--out", "out", "--device", "cpu", "--num-threads", "1"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a model and conversations, as a person would have it."""
    save_tiny(tmp_path / "base")
    write_jsonl(tmp_path / "chat.jsonl", sums(14))
    return tmp_path


def test_bad_sample_is_said_once_with_its_exit_code(place: Path) -> None:
    write_jsonl(place / "chat.jsonl", [*sums(3), {"messages": [{"role": "bot", "content": "?"}]}])
    ran = typed(*WORDS, "--ranks", "2", where=place)
    assert ran.returncode == SampleError.exit_code
    assert ran.stderr.count("chat.jsonl:4: ") == 1
    assert "Traceback" not in ran.stderr


def test_deepspeed_compiles_nothing_and_says_nothing(place: Path) -> None:
    """On a machine without a compiler, or any other program: DeepSpeed would build one for ranks, and one for AdamW."""
    shared_before = set(os.listdir("/dev/shm"))
    words = ["--ranks", "2", "--backend", "deepspeed", "--zero-stage", "3", "--offload", "true", "--num-steps", "2"]
    ran = subprocess.run(
        command(*WORDS, *words),
        cwd=place,
        env=environment() | {"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "ranks       2, deepspeed" in ran.stdout
    assert "WARNING" not in ran.stdout
    assert set(os.listdir("/dev/shm")) <= shared_before


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_killed_ends_the_command_and_all_of_its_process_group(place: Path, rank: int) -> None:
    shared_before = set(os.listdir("/dev/shm"))
    words = [*WORDS, "--ranks", "3", "--num-steps", "4000", "--samples-per-step", "3", "--export", "none"]
    process = subprocess.Popen(
        command(*words),
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if line.startswith("step 3/") and "loss" in line:
            ranks = json.loads((place / "out/run.json").read_text())["ranks"]
            os.kill(ranks[rank]["process"], signal.SIGKILL)
    errors = process.stderr.read()
    assert process.wait() == RankFailed.exit_code, errors
    assert f"rank {rank}: it was killed by SIGKILL" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert set(os.listdir("/dev/shm")) <= shared_before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signal_is_agreed_upon_saved_and_gone_on_from(place: Path, number: signal.Signals) -> None:
    words = [*WORDS, "--ranks", "2", "--num-steps", "4000", "--samples-per-step", "2", "--export", "none"]
    process = subprocess.Popen(
        command(*words), cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said = []
    for line in process.stdout:
        said.append(line)
        # Once: the line that says that step 3 is saved begins like this, too, and a second Ctrl-C stops at once.
        if line.startswith("step 3/") and "loss" in line:
            process.send_signal(number)
    errors = process.stderr.read()
    assert process.wait() == EXIT_INTERRUPTED, errors
    assert errors.count(f"{number.name}: finishing this step, then saving.") == 1
    (saved,) = committed(place / "out/checkpoints")
    stopped = int(saved.name.removeprefix("step-"))
    assert 3 <= stopped < 4000
    assert f"stopped by {number.name}; {stopped} of 4000 steps are saved. To go on:\n" in "".join(said)
    assert [record.step for record in records_of(place / "out")] == list(range(1, stopped + 1))


def test_ranks_that_a_launcher_started_train_as_ours_do(place: Path) -> None:
    """Two processes with torchrun's variables, as on two machines: each takes its rank from them."""
    words = [*WORDS, "--num-steps", "3", "--samples-per-step", "4", "--export", "none"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(
            subprocess.Popen(
                command(*words),
                cwd=place,
                env=environment() | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert "ranks       2, ddp" in outputs[0][0]
    assert outputs[1][0] == "", "one rank speaks"
    launched = records_of(place / "out")
    shutil.rmtree(place / "out")
    ours = typed(*words, "--ranks", "2", where=place)
    assert ours.returncode == 0, ours.stderr
    assert records_of(place / "out") == launched
    assert all(isinstance(record, StepRecord) for record in launched)
    assert json.loads((place / "out/summary.json").read_text())["num_steps"] == 3
    assert not [name for name in os.listdir(place / "out") if name.startswith(".unfinished")]
