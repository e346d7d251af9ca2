"""A whole run on ragged conversations by the toolkit's own command: reads, renders, packs, trains."""

import argparse
import contextlib
import itertools
import os
import tempfile
from pathlib import Path

from tests.benchmark.speed.work import NUM_EPOCHS, NUM_SAMPLES, RATE, SHAPES, TOKENS_PER_PACK, measure, place, settle
from training.cli import main as command
from training.metrics.records import StepRecord, read_records

DATA = {"sft": "chat.jsonl", "dpo": "pairs.jsonl"}


def main() -> None:
    """Measures it for one recipe at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", choices=DATA)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--packing", choices=("true", "false"), default="true")
    arguments = parser.parse_args()
    settle()
    with tempfile.TemporaryDirectory() as name:
        # From its root: the command takes relative paths from where `bazel run` was typed.
        directory = Path(name)
        num_tokens = place(directory, arguments.shape)
        words = [
            arguments.recipe,
            "--model",
            str(directory / "base"),
            "--data",
            str(directory / DATA[arguments.recipe]),
        ]
        words += ["--device", "cpu", "--num-threads", "1", "--export", "none", "--validation-fraction", "0"]
        words += ["--samples-per-step", str(NUM_SAMPLES), "--tokens-per-rank-max", str(TOKENS_PER_PACK)]
        words += ["--packing", arguments.packing]
        words += ["--num-epochs", str(NUM_EPOCHS), "--shape", "constant", "--learning-rate-peak", str(RATE)]
        words += [
            "--warmup-fraction",
            "0",
            "--weight-decay",
            "0",
            "--optimizer.beta2",
            "0.999",
            "--gradient-norm-max",
            "1",
        ]
        runs = itertools.count()

        def run() -> float:
            out = directory / f"out-{next(runs)}"
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                assert command([*words, "--out", str(out)]) == 0
            return [each for each in read_records(out / "metrics.jsonl") if isinstance(each, StepRecord)][-1].loss

        measure(run, num_tokens if arguments.recipe == "sft" else NUM_SAMPLES * NUM_EPOCHS)


if __name__ == "__main__":
    main()
