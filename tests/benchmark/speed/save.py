"""A run of SFT that saves every 20 steps, and the same one that does not.

What saving costs is said in two ways: by the records, which have how long the loop stood still for each checkpoint, and
by the clock over all steps, which also has what writing beside them slows down. The checkpoint at the end, which all
make, is in neither. The disk's own speed is that of the same bytes, written and flushed by themselves right after.
"""

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

from tests.benchmark.speed.work import SHAPES, cost_of, place, settle, tell
from training.cli import main as command
from training.metrics.records import CheckpointRecord, StepRecord, read_records

NUM_STEPS, STEPS_BETWEEN, SAMPLES_PER_STEP, TOKENS_PER_STEP = 61, 20, 2, 1024
"""One step more than a multiple: what is saved last on the way is also written on the way."""

WAYS = {
    "never": [],
    "beside": ["--steps-between", str(STEPS_BETWEEN)],
    "still": ["--steps-between", str(STEPS_BETWEEN), "--asynchronous", "false"],
}


def disk_bytes_per_second(directory: Path, num_bytes: int) -> float:
    """How fast the file system takes so many bytes in one file, flushed."""
    block = os.urandom(1 << 20)
    began = time.perf_counter()
    with (directory / "plain").open("wb", buffering=0) as file:
        for _ in range(num_bytes >> 20):
            file.write(block)
        os.fsync(file.fileno())
    return (num_bytes >> 20 << 20) / (time.perf_counter() - began)


def main() -> None:
    """Measures one way at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    settle()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        place(directory, arguments.shape)
        words = ["sft", "--model", str(directory / "base"), "--data", str(directory / "chat.jsonl")]
        words += ["--device", "cpu", "--num-threads", "1", "--export", "none", "--validation-fraction", "0"]
        words += ["--samples-per-step", str(SAMPLES_PER_STEP), "--tokens-per-rank-max", str(TOKENS_PER_STEP)]
        words += ["--num-steps", str(NUM_STEPS), "--out", str(directory / "out"), *WAYS[arguments.way]]

        def run() -> None:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                assert command(words) == 0

        cost = cost_of(run, is_warmed=False)
        records = list(read_records(directory / "out/metrics.jsonl"))
        steps = [each for each in records if isinstance(each, StepRecord)]
        *saves, last = (each for each in records if isinstance(each, CheckpointRecord))
        assert len(steps) == last.step == NUM_STEPS, records
        assert len(saves) == (0 if arguments.way == "never" else NUM_STEPS // STEPS_BETWEEN), saves
        disk = disk_bytes_per_second(directory, last.bytes_written)
    stalled = sum(each.seconds_stalled for each in saves)
    seconds = stalled + sum(each.seconds for each in steps)
    measured = saves or [last]
    tell(
        cost,
        sum(each.num_tokens for each in steps),
        steps[-1].loss,
        percent_stalled=100 * stalled / seconds,
        seconds=seconds,
        megabytes=last.bytes_written / 1e6,
        megabytes_per_second=sum(each.bytes_written for each in measured)
        / sum(each.seconds for each in measured)
        / 1e6,
        disk_megabytes_per_second=disk / 1e6,
    )


if __name__ == "__main__":
    main()
