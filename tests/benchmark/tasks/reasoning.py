"""Procedural reasoning with verifiers, for the real SmolLM2-135M-Instruct: problems and judges of reasoning-gym.

Family relations in a few sentences and a question with one word for an answer; short sums and differences. Both can be
improved in minutes and neither is solved before. The package makes each problem from a seed, and its own judge gives
the mark. Questions that are held out are never trained on, whatever the seed.
"""

from typing import Any

import reasoning_gym

from tests.benchmark.tasks.task import Data, Problem, Task, asked
from training.quickstart.smollm import write_smollm

SETTINGS: dict[str, dict[str, Any]] = {
    "family_relationships": {"min_family_size": 4, "max_family_size": 5},
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
}
"""Of each kind, half of the problems."""

NUM_TRAINING, NUM_HELD_OUT = 1024, 100
HELD_OUT_SEED, TRAINING_SEED = 1, 1000
"""Where the package's seeds begin; a run's seed is added to the second."""


def reasoning_data(seed: int) -> Data:
    """Problems to train on, drawn by the seed, and problems held out, the same for all."""
    held_out = _problems(NUM_HELD_OUT, seed=HELD_OUT_SEED, without=frozenset())
    unseen = frozenset(problem.question for problem, _ in held_out)
    training = _problems(NUM_TRAINING, seed=TRAINING_SEED + seed, without=unseen)
    return Data(
        training=[asked(problem.question, answer) for problem, answer in training],
        held_out=[asked(problem.question, answer) for problem, answer in held_out],
        problems=[problem for problem, _ in held_out],
    )


def _problems(num: int, *, seed: int, without: frozenset[str]) -> list[tuple[Problem, str]]:
    """That many different problems, each with its answer, the kinds in turn."""
    kinds = []
    for name, settings in SETTINGS.items():
        made: dict[str, tuple[Problem, str]] = {}
        for entry in reasoning_gym.create_dataset(name, seed=seed, size=4 * num, **settings):
            if entry["question"] not in without:
                made.setdefault(entry["question"], (_problem(name, entry), entry["answer"]))
        kinds.append(list(made.values())[: num // len(SETTINGS)])
        assert len(kinds[-1]) == num // len(SETTINGS), f"{name} has only {len(made)} different questions"
    return [problem for together in zip(*kinds, strict=True) for problem in together]


def _problem(name: str, entry: dict[str, Any]) -> Problem:
    judge = reasoning_gym.get_score_answer_fn(name)
    return Problem(entry["question"], lambda answer: float(judge(answer, entry)))


REASONING = Task("reasoning", write_smollm, reasoning_data, num_new_tokens_max=16)
