"""From the start of `python -m training sft` to its first optimizer step, on a tiny model."""

import tempfile
from pathlib import Path

from tests.benchmark.speed.starting import first_step
from tests.benchmark.speed.work import NUM_SAMPLES, RATE, TOKENS_PER_PACK, place, tell


def main() -> None:
    """Measures one start."""
    words = ["-m", "training", "sft", "--model", "base", "--data", "chat.jsonl", "--out", "out", "--device", "cpu"]
    words += ["--num-threads", "1", "--export", "none", "--validation-fraction", "0", "--num-epochs", "1"]
    words += ["--samples-per-step", str(NUM_SAMPLES), "--tokens-per-rank-max", str(TOKENS_PER_PACK)]
    words += ["--learning-rate-peak", str(RATE)]
    with tempfile.TemporaryDirectory() as directory:
        place(Path(directory), "tiny")
        cost = first_step(words, Path(directory))
    tell(cost, 1, cost.result, seconds=cost.seconds)


if __name__ == "__main__":
    main()
