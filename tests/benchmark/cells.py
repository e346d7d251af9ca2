"""What the benchmark trains: a task, a recipe, its features, and the seeds. A new permutation is one row here."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmark.tasks.arithmetic import ARITHMETIC
from tests.benchmark.tasks.task import Task
from training.config import RecipeKind

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
    """Settings of a run of sft before, with all weights, that makes the model to start from out of the task's. It
    reads what `judging` says of the cell's recipe: the same conversations, or good and bad ones."""
    recipe: RecipeKind = "sft"
    least_gain: dict[str, float] = field(default_factory=dict)
    """Metrics with the least by which each seed must be above the model that it started from."""
    framework: str = "single"
    num_ranks: int = 1

    @property
    def name(self) -> str:
        """arithmetic_lora, arithmetic_full_ddp_x2, arithmetic_grpo_full."""
        ranks = () if self.framework == "single" else (f"{self.framework}_x{self.num_ranks}",)
        return "_".join((self.lesson, *(self.features or ("full",)), *ranks))

    @property
    def lesson(self) -> str:
        """What is learned and how, whatever the features: curves of one lesson can be held against each other."""
        return self.task.name if self.recipe == "sft" else f"{self.task.name}_{self.recipe}"

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

# Those that learn from feedback start from a model that works sums in two ways, of which one is wrong; see the task.
_TWO_WAYS: Words = (*_SMALL, "--num-steps", "500")
ARITHMETIC_GRPO = Cell(
    task=ARITHMETIC,
    features=(),
    recipe="grpo",
    settings=(
        *_SMALL[2:],
        *("--samples-per-step", "256", "--sequences-per-call", "256", "--completion-tokens-max", "48"),
        *("--learning-rate-peak", "5e-4", "--num-steps", "40"),
    ),
    seeds=_FIVE,
    warm_up=_TWO_WAYS,
    least={"exact_match": 0.5},
    least_gain={"exact_match": 0.3},
)
ARITHMETIC_DPO = Cell(
    task=ARITHMETIC,
    features=(),
    recipe="dpo",
    settings=(*_SMALL, "--learning-rate-peak", "2e-4", "--num-steps", "60"),
    seeds=_FIVE,
    warm_up=_TWO_WAYS,
    least={"reward_margin": 5.0, "win_rate": 0.95},
    # Pushing the wrong way down takes likelihood from the right one as well: not every pair that it tells is a sum that
    # comes out right.
    least_gain={"pairs_right": 0.3, "exact_match": 0.1},
)
ARITHMETIC_REWARD = Cell(
    task=ARITHMETIC,
    features=(),
    recipe="reward",
    settings=(*_SMALL, "--learning-rate-peak", "1e-3", "--num-steps", "60"),
    seeds=_FIVE,
    warm_up=_TWO_WAYS,
    least={"pairs_right": 0.9},
)
