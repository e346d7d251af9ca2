"""Runs of the trainer in processes of their own, so that nothing but files passes from one to the next."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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


def typed(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Types a command in a directory and waits for it."""
    return subprocess.run(command(*words), cwd=where, env=environment(), capture_output=True, text=True, check=False)


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
