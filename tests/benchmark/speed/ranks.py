"""SFT on a number of ranks, and which part of it takes how long.

Every rank counts its own processor seconds over the loop of steps, all of its threads. So work that only several ranks
do (adding up gradients, another copy of the optimizer) shows, and waiting for a processor does not. The parts are rank
0's, by the clock: waiting for the others is in them.
"""

import argparse
import contextlib
import itertools
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import training.parallel.ddp
import training.run
from tests.benchmark.speed.parts import Parts
from tests.benchmark.speed.work import SHAPES, TOKENS_PER_PACK, Cost, bytes_max, place, settle, tell
from training.algorithms.sft import Sft
from training.checkpoint.saver import Saver
from training.cli import main as command
from training.data.loader import Loader
from training.metrics.records import StepRecord, read_records
from training.parallel.ddp import Ddp
from training.parallel.single import Single

NUM_STEPS, STEPS_BETWEEN, SAMPLES_PER_STEP = 21, 20, 8

PARTS = ("data", "forward", "backward", "optimizer", "communication", "checkpoint", "other")


def watched(parts: Parts) -> None:
    """Has the toolkit's functions charged to the parts of a step."""
    parts.charge("other", training.run, "run")
    parts.charge("data", Loader, "batch")
    parts.charge("forward", Sft, "loss_sum")
    parts.charge("backward", Single, "backward")
    # torch puts a wrapper of its own around the step of the first optimizer that is made.
    parts.charge("optimizer", torch.optim.AdamW, "step", "zero_grad")
    parts.charge("optimizer", Single, "gradient_norm", "clip_gradients")
    parts.charge("communication", Ddp, "_add_up", "sum_over_ranks")
    parts.charge("communication", training.parallel.ddp, "_gathered")
    parts.charge("checkpoint", Saver, "save", "collect")


def counted(parts: Parts, directory: Path, locked: Any, *words: Any) -> Any:
    """A rank's run, which leaves a file with what it cost."""
    (rank,) = [each.rank for each in words if hasattr(each, "rank")]
    looped = training.run.run

    def loop(**named: Any) -> Any:
        parts.seconds.clear()
        cpu, clock = time.process_time(), time.perf_counter()
        outcome = looped(**named)
        cost = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - clock, "bytes": bytes_max()}
        (directory / f"{rank}.json").write_text(json.dumps({**cost, "parts": parts.seconds}))
        return outcome

    training.run.run = loop
    try:
        return locked(*words)
    finally:
        training.run.run = looped


def main() -> None:
    """Measures one number of ranks at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    settle()
    before = bytes_max()
    parts = Parts(time.perf_counter)
    watched(parts)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        place(directory, arguments.shape)
        training.run._locked = partial(counted, parts, directory, training.run._locked)
        words = ["sft", "--model", str(directory / "base"), "--data", str(directory / "chat.jsonl")]
        words += ["--device", "cpu", "--num-threads", "1", "--export", "none", "--validation-fraction", "0"]
        words += ["--samples-per-step", str(SAMPLES_PER_STEP), "--tokens-per-rank-max", str(TOKENS_PER_PACK)]
        words += ["--num-steps", str(NUM_STEPS), "--steps-between", str(STEPS_BETWEEN), "--out", str(directory / "out")]
        words += ["--ranks", str(arguments.ranks), "--backend", "ddp"] if arguments.ranks > 1 else []
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            assert command(words) == 0
        steps = [each for each in read_records(directory / "out/metrics.jsonl") if isinstance(each, StepRecord)]
        ranks = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(arguments.ranks)]
    assert len(steps) == NUM_STEPS, steps
    first = ranks[0]
    assert set(first["parts"]) <= set(PARTS), first
    cost = Cost(
        None,
        sum(each["cpu_seconds"] for each in ranks),
        first["seconds"],
        max(each["bytes"] for each in ranks) - before,
    )
    spent = sum(first["parts"].values())
    tell(
        cost,
        sum(each.num_tokens for each in itertools.islice(steps, NUM_STEPS)),
        steps[-1].loss,
        seconds=first["seconds"],
        **{f"part_{part}": 100 * first["parts"].get(part, 0.0) / spent for part in PARTS},
    )


if __name__ == "__main__":
    main()
