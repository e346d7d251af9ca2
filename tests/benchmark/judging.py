"""What each recipe reads of a task, and what tells whether the model has learned it. A recipe is one row of JUDGED_BY.

sft      conversations                    answers and likelihoods of held-out problems       the battery
grpo     questions; the judge is the reward                                                  the battery
dpo      pairs                            answers; likelihoods of held-out pairs             pairs, exact match
reward   pairs                            numbers given to held-out pairs                    pairs
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from tests.benchmark import battery
from tests.benchmark.measure import measure, metrics
from tests.benchmark.pairs import log_likelihoods, preference_figures, ranking_figures, rewards
from tests.benchmark.tasks.task import Data, Sample, Task
from training.config import RecipeKind
from training.metrics.records import Record, StepRecord, ValidationRecord

Figures = dict[str, float]

SHARE_OF_ENDS = 10
"""A beginning or an end of a run is a tenth of its steps."""


class Judged(NamedTuple):
    """The figures of the trained model, and those of the one that it started from."""

    after: Figures
    before: Figures
    """Without what only makes sense of two models, and of a reward model with nothing: before it there is no head."""


class Ends(NamedTuple):
    """Of what should fall in training: where it began and where it ended."""

    first: float
    last: float
    says: str


@dataclass(frozen=True)
class Judge:
    """What a recipe reads, and how what it made is judged."""

    training: Callable[[Data], list[Sample]]
    held_out: Callable[[Data], list[Sample]]
    """For the validation loss; nothing where the recipe has none."""
    figures: Callable[[Path, Path, Task, Data], Judged]
    """From the directories of the trained model and of the one that it started from."""
    warm_up: Callable[[Data], list[Sample]] = lambda data: data.warm_up
    """Conversations for a run of sft before this one."""
    learns_from_rewards: bool = False
    """True if it is to be told which function judges."""

    def height(self, record: StepRecord) -> float:
        """What of a step belongs in the curve: what falls if the model learns.

        A policy gradient's loss is about 0 whatever the model knows: there it is 1 less the completions' mean reward.
        """
        return 1.0 - record.metrics["reward_mean"] if self.learns_from_rewards else record.loss

    def ends(self, records: Sequence[Record]) -> Ends:
        """Where a run began and ended: its validation losses or, where there are none, its curve."""
        if self.learns_from_rewards:
            heights = [self.height(each) for each in records if isinstance(each, StepRecord)]
            num = max(1, len(heights) // SHARE_OF_ENDS)
            says = "The mean reward of the run's last tenth is above that of its first."
            return Ends(fmean(heights[:num]), fmean(heights[-num:]), says)
        losses = [each.loss for each in records if isinstance(each, ValidationRecord)]
        return Ends(losses[0], losses[-1], "The held-out loss after training is below the one before.")


def _battery(trained: Path, base: Path, task: Task, data: Data) -> Judged:
    before = measure(base, task, data, samples=False)
    after = metrics(measure(trained, task, data, samples=True), before)
    return Judged(after, {name: each for name, each in metrics(before, before).items() if name != "win_rate"})


def _preference(trained: Path, base: Path, task: Task, data: Data) -> Judged:
    after, before = ({"exact_match": _exact_match(each, task, data)} for each in (trained, base))
    of_trained, of_base = (log_likelihoods(each, data.held_out_pairs) for each in (trained, base))
    return Judged(
        after | preference_figures(of_trained, of_base),
        before | {"pairs_right": preference_figures(of_base, of_base)["pairs_right"]},
    )


def _exact_match(directory: Path, task: Task, data: Data) -> float:
    return battery.exact_match(measure(directory, task, data, samples=False).scores)


def _ranking(trained: Path, base: Path, task: Task, data: Data) -> Judged:
    return Judged(ranking_figures(rewards(trained, data.held_out_pairs)), {})


JUDGED_BY: dict[RecipeKind, Judge] = {
    "sft": Judge(lambda data: data.training, lambda data: data.held_out, _battery, lambda data: data.training),
    "grpo": Judge(lambda data: data.prompts, lambda _: [], _battery, learns_from_rewards=True),
    "dpo": Judge(lambda data: data.pairs, lambda data: data.held_out_pairs, _preference),
    "reward": Judge(lambda data: data.pairs, lambda data: data.held_out_pairs, _ranking),
}
