"""The start of start.py with TRL's SFTTrainer: `trl_first_step.py`, which imports nothing but what that takes."""

import tempfile
from pathlib import Path

from tests.benchmark.speed.starting import first_step
from tests.benchmark.speed.work import NUM_SAMPLES, RATE, place, tell

PER_DEVICE = 8


def main() -> None:
    """Measures one start."""
    words = ["-m", "tests.benchmark.speed.trl_first_step", str(PER_DEVICE), str(NUM_SAMPLES // PER_DEVICE), str(RATE)]
    with tempfile.TemporaryDirectory() as directory:
        place(Path(directory), "tiny")
        cost = first_step(words, Path(directory))
    tell(cost, 1, cost.result, packages=("torch", "transformers", "trl"), seconds=cost.seconds)


if __name__ == "__main__":
    main()
