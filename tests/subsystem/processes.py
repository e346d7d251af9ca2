"""Runs of the trainer in processes of their own, so that nothing but files passes from one to the next."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.cli import main
from training.metrics.records import CheckpointRecord, Record, read_records


def forked(run: Callable[..., object], *arguments: Any) -> int:
    """Calls a function in a forked process, which has imported what this one has; returns its exit code."""
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def command(*words: str) -> list[str]:
    """The command line of the trainer, as an argument list."""
    return [sys.executable, "-m", "training", *words]


def environment() -> dict[str, str]:
    """This process' environment, in which another one finds the same modules."""
    return {key: value for key, value in os.environ.items() if key != "BUILD_WORKING_DIRECTORY"} | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_HUB_OFFLINE": "1",
    }


class Started:
    """A command of the trainer that somebody has typed, in a process that has imported what this one has.

    All but the start of an interpreter is as with `command`: that takes seconds, and a test or two of each file has it.
    """

    def __init__(
        self,
        *words: str,
        where: Path,
        variables: Mapping[str, str] | None = None,
        before: Callable[[], None] = lambda: None,
        program: Callable[[list[str]], int | None] = main,
    ) -> None:
        """Starts it.

        Args:
            words: after `python -m training`.
            where: the working directory.
            variables: of the environment, beside those that are there.
            before: is called first, in the new process.
            program: what was typed; the trainer's own if none is given.
        """
        import training.recipes  # noqa: F401 - the fork has it then; not above, for some tests start nothing

        reads, writes = os.pipe()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - ended() closes it, after the process has written to it
        self._process = multiprocessing.get_context("fork").Process(
            target=_as_typed, args=(program, words, where, dict(variables or {}), before, writes, self._errors.fileno())
        )
        self._process.start()
        os.close(writes)
        self.stdout = os.fdopen(reads)

    def send_signal(self, number: signal.Signals) -> None:
        """To this process alone."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def ended(self, seconds_max: float | None = None) -> subprocess.CompletedProcess[str]:
        """Waits for the end, and returns what of the output has not been read yet.

        Args:
            seconds_max: how long it may take, at the most; None is as long as it takes.
        """
        if seconds_max is not None:
            self._process.join(seconds_max)
            assert not self._process.is_alive(), f"it still runs after {seconds_max} s"
        said = self.stdout.read()
        self.stdout.close()
        self._process.join()
        self._errors.seek(0)
        errors = self._errors.read()
        self._errors.close()
        assert self._process.exitcode is not None
        return subprocess.CompletedProcess((), self._process.exitcode, said, errors)


def _as_typed(
    program: Callable[[list[str]], int | None],
    words: tuple[str, ...],
    where: Path,
    variables: dict[str, str],
    before: Callable[[], None],
    out: int,
    errors: int,
) -> None:
    os.dup2(out, 1)
    os.dup2(errors, 2)
    os.close(out)
    # pytest has put others in their place, and a handler for Ctrl-C of its own.
    sys.stdout, sys.stderr = (os.fdopen(each, "w", buffering, closefd=False) for each, buffering in ((1, -1), (2, 1)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(where)
    os.environ.update(variables)
    before()
    sys.exit(program(list(words)))


def typed(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Types a command in a directory and waits for it."""
    return Started(*words, where=where).ended()


def is_running(process: int) -> bool:
    """Whether there is such a process; one that has ended and that init has not asked about yet is none."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def records_of(out: Path) -> list[Record]:
    """The steps and validations of a run without what no two runs share: how long things took."""
    every = [each for each in read_records(out / "metrics.jsonl") if not isinstance(each, CheckpointRecord)]
    return [type(each)(**vars(each) | {"seconds": 0.0}) for each in every]


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: parameters, moments and generators."""
    return {
        f"{path.stem}/{name}": value
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
