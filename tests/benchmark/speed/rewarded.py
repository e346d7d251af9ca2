"""GRPO by the toolkit's own command: completions, rewards, advantages, updates."""

import argparse
import contextlib
import itertools
import os
import tempfile
from pathlib import Path

import training.rollout.episodes
import training.run
from tests.benchmark.speed.parts import Parts
from tests.benchmark.speed.prompts import GROUP_SIZE, NUM_PROMPTS, NUM_STEPS, SEED, TOKENS_MAX, place_prompts
from tests.benchmark.speed.work import RATE, SHAPES, TOKENS_PER_PACK, cost_of, settle, tell
from training.checkpoint.saver import Saver
from training.cli import main as command
from training.metrics.records import StepRecord, read_records


def main() -> None:
    """Measures it at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    settle()
    parts = Parts()
    parts.charge("generation", training.rollout.episodes, "generate")
    parts.charge("update", training.run, "run")
    parts.charge("saving", Saver, "save")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        place_prompts(directory, arguments.shape)
        words = ["grpo", "--model", str(directory / "base"), "--data", str(directory / "prompts.jsonl")]
        words += ["--device", "cpu", "--num-threads", "1", "--export", "none", "--seed", str(SEED)]
        words += ["--samples-per-step", str(NUM_PROMPTS * GROUP_SIZE), "--group-size", str(GROUP_SIZE)]
        words += ["--tokens-per-rank-max", str(TOKENS_PER_PACK), "--completion-tokens-max", str(TOKENS_MAX)]
        words += ["--num-steps", str(NUM_STEPS), "--shape", "constant", "--learning-rate-peak", str(RATE)]
        words += ["--warmup-fraction", "0", "--optimizer.beta2", "0.999", "--gradient-norm-max", "1"]
        words += ["--rewards", "[tests.benchmark.speed.prompts:reward]"]
        runs = itertools.count()

        def run() -> list[StepRecord]:
            parts.seconds.clear()
            out = directory / f"out-{next(runs)}"
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                assert command([*words, "--out", str(out)]) == 0
            return [each for each in read_records(out / "metrics.jsonl") if isinstance(each, StepRecord)]

        cost = cost_of(run)
    num_samples = NUM_STEPS * NUM_PROMPTS * GROUP_SIZE
    num_drawn = sum(each.metrics["length_mean"] * NUM_PROMPTS * GROUP_SIZE for each in cost.result)
    tell(
        cost,
        num_samples,
        cost.result[-1].gradient_norm,
        tokens_drawn_per_second=num_drawn / parts.seconds["generation"],
        samples_updated_per_second=num_samples / parts.seconds["update"],
    )


if __name__ == "__main__":
    main()
