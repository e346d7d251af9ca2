"""What the benchmark tunes: a task, the features it is tuned with, and the seeds. A new permutation is one row here."""

from dataclasses import dataclass
from pathlib import Path

from tests.benchmark.tasks.arithmetic import ARITHMETIC
from tests.benchmark.tasks.task import Task

Words = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One row: everything but the seed."""

    task: Task
    features: tuple[str, ...]
    """Named as in the smoke matrix; none is all weights on one process."""
    settings: Words
    """Words of the command line, beside model, data, seed and out."""
    seeds: tuple[int, ...]
    least: dict[str, float]
    """Metrics with the least that each seed must reach, whatever the baseline says: the task's promise."""
    warm_up: Words | None = None
    """Settings of a run before, with all weights, that makes the model to start from out of the task's."""
    framework: str = "single"
    num_ranks: int = 1

    @property
    def name(self) -> str:
        """arithmetic_lora, arithmetic_full_ddp_x2."""
        ranks = () if self.framework == "single" else (f"{self.framework}_x{self.num_ranks}",)
        return "_".join((self.task.name, *(self.features or ("full",)), *ranks))

    @property
    def export(self) -> Path:
        """The directory below the run's that holds the model to judge."""
        return Path("merged" if "lora" in self.features else "model")


_SMALL: Words = (
    *("--samples-per-step", "32", "--tokens-per-rank-max", "4096", "--num-threads", "1", "--device", "cpu"),
    *("--learning-rate-peak", "4e-3", "--progress-steps-between", "100"),
)
_FIVE = (0, 1, 2, 3, 4)

ARITHMETIC_FULL = Cell(
    task=ARITHMETIC,
    features=(),
    settings=(*_SMALL, "--num-steps", "600"),
    seeds=_FIVE,
    least={"exact_match": 0.9},
)
ARITHMETIC_DDP = Cell(
    task=ARITHMETIC,
    features=(),
    settings=(*_SMALL, "--num-steps", "600", "--ranks", "2", "--backend", "ddp"),
    seeds=_FIVE[:3],
    least={"exact_match": 0.9},
    framework="ddp",
    num_ranks=2,
)
ARITHMETIC_LORA = Cell(
    task=ARITHMETIC,
    features=("lora",),
    settings=(*_SMALL, "--num-steps", "400", "--lora", "--rank", "16", "--learning-rate-peak", "1e-2"),
    seeds=_FIVE[:3],
    # An adapter cannot make a method out of random weights: head and embeddings stay as they were drawn. It is given a
    # model that has begun to learn the method and gets one sum in twenty right.
    warm_up=(*_SMALL, "--num-steps", "250"),
    least={"exact_match": 0.9},
)
