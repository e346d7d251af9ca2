"""What the two quickstarts have in common: a model and data to write, the settings to train with, and prompts."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.whole import write_whole


class Prompt(NamedTuple):
    """Something held out that the model is asked before and after."""

    text: str
    person: str | None = None
    """What a person answered, to hold the model's answers against; None where nobody did."""


@dataclass(frozen=True)
class Data:
    """JSONL samples for both files, and prompts, none of which training sees."""

    training: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    prompts: list[Prompt]
    source: str
    """Where it comes from, in a few words."""
    asked: list[str]
    """Prompts of the second act, to draw answers to and learn from them."""
    asked_held_out: list[str]
    """Others, on which its reward is told."""


@dataclass(frozen=True)
class Goal:
    """What the second act rewards."""

    title: str
    """What is learned, above its plot and its part of the report."""
    pattern: str
    """A regular expression: an answer that it matches is worth 1, any other 0."""
    wanted: str
    """The same for people."""
    prompts_are: str
    """What it is asked, in the plural."""
    settings: tuple[str, ...]
    """Words for the command line of `grpo`, beside model, data, reward, length and seed."""
    num_new_tokens_max: int


@dataclass(frozen=True)
class Task:
    """One quickstart. The flow around it is in `training.quickstart.flow`."""

    name: str
    """Short and unique; a run that was interrupted goes on only as the same task."""
    title: str
    """What is learned, above the plot and the report."""
    model_source: str
    make_model: Callable[[Path, int], None]
    """Writes the model to start from as a Hugging Face directory, drawn from the seed if it is random."""
    make_data: Callable[[int], Data]
    settings: tuple[str, ...]
    """Words for the command line of `sft`, beside model, data, length and seed."""
    trained: str
    """Directory, below the run's, of the export that answers afterwards."""
    is_chat: bool
    num_new_tokens_max: int
    held_out_are: str
    """What the held-out samples are, in the plural."""
    loss_unit: str
    goal: Goal
    """Of the second act."""


def write_jsonl(path: Path, samples: Iterable[dict[str, Any]]) -> None:
    """Writes one line a sample, in one piece: a file that is there is whole."""
    write_whole(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples))
