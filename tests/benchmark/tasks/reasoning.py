"""Procedural reasoning with verifiers, for the real SmolLM2-135M-Instruct: problems and judges of reasoning-gym.

Family relations in a few sentences and a question with one word for an answer; short sums and differences. Both can be
improved in minutes and neither is solved before. The package makes each problem from a seed, and its own judge gives
the mark. Questions that are held out are never trained on, whatever the seed. Where pairs are to teach something, the
worse answer is the right one of another problem of the kind: of the right form, and wrong.
"""

from functools import cache
from typing import Any, NamedTuple

import reasoning_gym

from tests.benchmark.tasks.task import Data, Problem, Sample, Task, asked
from training.quickstart.smollm import write_smollm

SETTINGS: dict[str, dict[str, Any]] = {
    "family_relationships": {"min_family_size": 4, "max_family_size": 5},
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
}
"""Of each kind, half of the problems."""

NUM_TRAINING, NUM_HELD_OUT = 1024, 100
HELD_OUT_SEED, TRAINING_SEED = 1, 1000
"""Where the package's seeds begin; a run's seed is added to the second."""


class Made(NamedTuple):
    """A problem as the package makes it."""

    kind: str
    question: str
    answer: str

    @property
    def shown(self) -> Sample:
        """The question with its answer."""
        return asked(self.question, self.answer)

    @property
    def problem(self) -> Problem:
        """The question with its judge."""
        return Problem(self.question, lambda text: mark(self.question, text, kind=self.kind, answer=self.answer))


def reasoning_data(seed: int) -> Data:
    """Problems to train on, drawn by the seed, and problems held out, the same for all."""
    held_out = _made(NUM_HELD_OUT, seed=HELD_OUT_SEED, without=frozenset())
    training = _made(NUM_TRAINING, seed=TRAINING_SEED + seed, without=frozenset(each.question for each in held_out))
    return Data(
        training=[each.shown for each in training],
        held_out=[each.shown for each in held_out],
        problems=[each.problem for each in held_out],
        prompts=[{"prompt": each.question, "kind": each.kind, "answer": each.answer} for each in training],
        # Where no answer is right there is nothing to reward: a few are shown first.
        warm_up=[each.shown for each in training],
        pairs=_pairs(training),
        held_out_pairs=_pairs(held_out),
    )


def mark(prompt: Any, completion: str, *, kind: str, answer: str, **others: Any) -> float:
    """What the package's judge gives an answer, from 0 to 1; also the reward of the command line."""
    return float(_judge(kind)(completion.strip(), {"answer": answer}))


def _pairs(problems: list[Made]) -> list[Sample]:
    """To each problem its answer, and the answer of the next one of its kind that the judge does not call right."""
    pairs = []
    for at, this in enumerate(problems):
        following = (each for each in problems[at + 1 :] + problems[:at] if each.kind == this.kind)
        wrong = next(each.answer for each in following if this.problem.score(each.answer) < 1.0)
        pairs.append({"prompt": this.question, "chosen": this.answer, "rejected": wrong})
    return pairs


@cache
def _judge(kind: str) -> Any:
    return reasoning_gym.get_score_answer_fn(kind)


def _made(num: int, *, seed: int, without: frozenset[str]) -> list[Made]:
    """That many different problems, the kinds in turn."""
    kinds = []
    for name, settings in SETTINGS.items():
        made: dict[str, Made] = {}
        for entry in reasoning_gym.create_dataset(name, seed=seed, size=4 * num, **settings):
            if entry["question"] not in without:
                made.setdefault(entry["question"], Made(name, entry["question"], entry["answer"]))
        kinds.append(list(made.values())[: num // len(SETTINGS)])
        assert len(kinds[-1]) == num // len(SETTINGS), f"{name} has only {len(made)} different questions"
    return [problem for together in zip(*kinds, strict=True) for problem in together]


REASONING = Task(
    "reasoning",
    write_smollm,
    reasoning_data,
    num_new_tokens_max=16,
    reward="tests.benchmark.tasks.reasoning:mark",
)
