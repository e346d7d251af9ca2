"""What a task is: a model to start from, samples to train on, others held out, problems with a judge.

Each recipe reads samples of its own kind; a task has those of the recipes that it is trained by.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Sample = dict[str, Any]
"""A line of JSONL, to be encoded."""


class Problem(NamedTuple):
    """A held-out question and its judge."""

    question: str
    score: Callable[[str], float]
    """The mark, from 0 to 1, for an answer; 1 is right."""


@dataclass(frozen=True)
class Data:
    """What one seed trains on, and what every seed is judged by."""

    training: list[Sample]
    held_out: list[Sample]
    """Never trained on, and the same for all seeds, so that seeds differ by training alone."""
    problems: list[Problem]
    """Empty where no program can tell a good answer: then likelihood is all there is to compare."""
    prompts: list[Sample] = field(default_factory=list)
    """The questions of `training` with what the task's reward wants to know of the answer, for grpo."""
    warm_up: list[Sample] = field(default_factory=list)
    """Conversations that teach good and bad answers alike, for a start that leaves feedback something to teach."""
    pairs: list[Sample] = field(default_factory=list)
    """A good and a bad answer to each, for dpo and reward."""
    held_out_pairs: list[Sample] = field(default_factory=list)
    """The same for what is held out."""


@dataclass(frozen=True)
class Task:
    """A task, without the features it is trained with."""

    name: str
    make_model: Callable[[Path, int], None]
    """Writes the model to start from as a Hugging Face directory, drawn from the seed if it is random."""
    make_data: Callable[[int], Data]
    num_new_tokens_max: int = 64
    reward: str = ""
    """The judge of the problems as a reward of `training.rollout.rewards`, which names it; only with prompts."""


def asked(question: str, answer: str) -> Sample:
    """A conversation of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
