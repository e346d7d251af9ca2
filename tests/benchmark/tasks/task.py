"""What a task is: a model to start from, conversations to train on, others held out, problems with a judge."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Sample = dict[str, Any]
"""A line of chat JSONL, to be encoded."""


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


@dataclass(frozen=True)
class Task:
    """A task, without the features it is trained with."""

    name: str
    make_model: Callable[[Path, int], None]
    """Writes the model to start from as a Hugging Face directory, drawn from the seed if it is random."""
    make_data: Callable[[int], Data]
    num_new_tokens_max: int = 64


def asked(question: str, answer: str) -> Sample:
    """A conversation of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
