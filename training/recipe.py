"""What the road of every recipe, `training.run`, asks of one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn
from transformers import PreTrainedTokenizerBase

from training.algorithms.algorithm import Algorithm, Logprobs
from training.data.batch import Batch, Microbatch
from training.data.example import Example
from training.metrics.records import StepRecord
from training.metrics.summary import FileSummary
from training.parallel.backend import Backend
from training.plan import Plan


class Recipe(Protocol):
    """What one way to learn decides. Must be picklable: ranks may start afresh."""

    def read(self, plan: Plan, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[list[Example], FileSummary]:
        """The examples of one file, and the fate of each of its lines.

        Raises:
            DataError: the file cannot be read, or a sample cannot be used.
            TemplateError: the chat template cannot be trusted.
        """
        ...

    def algorithm(self, plan: Plan) -> Algorithm[Batch, Microbatch]:
        """What is learned from them."""
        ...


@runtime_checkable
class ChangesOverSteps(Protocol):
    """A recipe whose loss has numbers that change over the run."""

    def columns(self, plan: Plan, step: int, num_steps: int) -> dict[str, float]:
        """By the name of a column, the value that it has for every document of the step's batch.

        A function of its arguments alone, so that a run goes on exactly. Validations have that of the last step, so
        that their losses can be compared with each other.
        """
        ...


@dataclass(frozen=True)
class Running:
    """What a recipe that makes its own batches finds when it begins."""

    model: nn.Module
    """As its backend trains it."""
    tokenizer: PreTrainedTokenizerBase
    backend: Backend
    logprobs: Logprobs
    """The model's answers to an algorithm."""
    build: Callable[[], nn.Module]
    """Makes the model anew, untrained, as `Backend.whole` asks for it."""


class Batches(Protocol):
    """Batches that depend on the model, and so on what was learned before."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every sample is seen once."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of a step; steps are asked for in order, by all ranks."""
        ...

    def described(self, record: StepRecord) -> StepRecord:
        """The record of the step whose batch was the last, with what else there is to say of it."""
        ...

    def state(self, step: int) -> dict[str, Any] | None:
        """What a checkpoint after so many steps needs to go on, as JSON values, the same on every rank."""
        ...

    def restore(self, step: int, state: dict[str, Any] | None) -> None:
        """Goes on after so many steps, with what `state` returned; called once, at the beginning as well."""
        ...


@runtime_checkable
class MakesBatches(Protocol):
    """A recipe whose batches do not stand in a file."""

    def batches(self, plan: Plan, examples: list[Example], running: Running) -> Batches:
        """The batches of the run."""
        ...
