"""The command line on two ranks: one voice, one exit code, and an end that all agree upon."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.subsystem.processes import Started, command, environment, is_running, records_of, typed
from tests.support.chats import sums, write_jsonl
from tests.support.shared_memory import shared_memory
from training import run
from training.checkpoint.manifest import committed
from training.data.batch import Batch
from training.errors import EXIT_INTERRUPTED, ConfigError, RankFailed, SampleError
from training.metrics.records import StepRecord
from training.models.tiny import save_tiny
from training.step import train_step

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
    shared_before = shared_memory()
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
    assert shared_memory() <= shared_before


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raising() -> None:
    raise ValueError("boom")


def put_in(fault: Callable[[], None], rank: int) -> None:
    """Into the second step of one rank; the others are where only their parent can end them."""

    def faulty(batch: Batch, **options: Any) -> StepRecord:
        if batch.step == 1:
            if options["backend"].rank != rank:
                time.sleep(300)
            fault()
        return train_step(batch, **options)

    run.train_step = faulty  # type: ignore[assignment]  # it takes any options and passes them on, where train_step names its own


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("fault", "said"), [(killed, "it was killed by SIGKILL"), (raising, "ValueError: boom")], ids=["killed", "raising"]
)
def test_a_rank_that_fails_ends_the_command_and_every_process_of_it(
    place: Path, rank: int, fault: Callable[[], None], said: str
) -> None:
    shared_before = shared_memory()
    words = [*WORDS, "--ranks", "2", "--num-steps", "2", "--export", "none"]
    ran = Started(*words, where=place, before=partial(put_in, fault, rank)).ended()
    assert ran.returncode == RankFailed.exit_code, ran.stderr
    assert f"error: rank {rank}: {said}; expected every rank to reach the end" in ran.stderr
    ranks = json.loads((place / "out/run.json").read_text())["ranks"]
    assert [each["rank"] for each in ranks] == [0, 1]
    assert not [each["rank"] for each in ranks if is_running(each["process"])]
    assert shared_memory() <= shared_before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signal_is_agreed_upon_saved_and_gone_on_from(place: Path, number: signal.Signals) -> None:
    words = [*WORDS, "--ranks", "2", "--num-steps", "4000", "--samples-per-step", "2", "--export", "none"]
    process = Started(*words, where=place)
    said = []
    for line in process.stdout:
        said.append(line)
        # Once: the line that says that step 3 is saved begins like this, too, and a second Ctrl-C stops at once.
        if line.startswith("step 3/") and "loss" in line:
            process.send_signal(number)
    ran = process.ended()
    assert ran.returncode == EXIT_INTERRUPTED, ran.stderr
    assert ran.stderr.count(f"{number.name}: finishing this step, then saving.") == 1
    (saved,) = committed(place / "out/checkpoints")
    stopped = int(saved.name.removeprefix("step-"))
    assert 3 <= stopped < 4000
    assert f"stopped by {number.name}; {stopped} of 4000 steps are saved. To go on:\n" in "".join(said)
    assert [record.step for record in records_of(place / "out")] == list(range(1, stopped + 1))


@pytest.fixture
def variables() -> list[dict[str, str]]:
    """What torchrun sets for each of two ranks, with a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [address | {"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]


def test_ranks_that_a_launcher_started_train_as_ours_do(place: Path, variables: list[dict[str, str]]) -> None:
    words = [*WORDS, "--num-steps", "3", "--samples-per-step", "4", "--export", "none"]
    ranks = [
        subprocess.Popen(
            command(*words),
            cwd=place,
            env=environment() | each,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in variables
    ]
    (said, errors), (said_by_other, errors_of_other) = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    # torch warns of a name server that does not answer, of which it wanted the name of an address to log.
    unanswered = r"^\[W.* hostname of the client socket cannot be retrieved.*\n"
    assert re.sub(unanswered, "", errors + errors_of_other, flags=re.MULTILINE) == ""
    assert "ranks       2, ddp" in said
    assert said_by_other == "", "one rank speaks"
    of_launcher = records_of(place / "out")
    shutil.rmtree(place / "out")
    ours = typed(*words, "--ranks", "2", where=place)
    assert ours.returncode == 0, ours.stderr
    assert records_of(place / "out") == of_launcher
    assert all(isinstance(record, StepRecord) for record in of_launcher)
    assert json.loads((place / "out/summary.json").read_text())["num_steps"] == 3
    assert not [name for name in os.listdir(place / "out") if name.startswith(".unfinished")]


def test_a_rank_that_has_read_other_data_is_named_by_all(place: Path, variables: list[dict[str, str]]) -> None:
    """As on a machine whose copy of a file is an old one."""
    write_jsonl(place / "old.jsonl", sums(13))
    words = [*WORDS, "--num-steps", "3"]
    ranks = [
        Started(*words, "--data", data, where=place, variables=each)
        for data, each in zip(("chat.jsonl", "old.jsonl"), variables, strict=True)
    ]
    for ran in [rank.ended() for rank in ranks]:
        assert ran.returncode == ConfigError.exit_code
        assert "error: rank 1 (training examples): " in ran.stderr
        assert "as on rank 0. hint: give every machine the same files" in ran.stderr
    assert not (place / "out/metrics.jsonl").exists()
