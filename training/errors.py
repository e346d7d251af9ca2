"""Every error Plumbline raises on purpose, as one tree, each branch with the exit code a shell sees.

    PlumblineError                      1
    ├── ConfigError                     2   a setting is impossible by itself
    │   └── PlanRefused                 2   settings that do not combine, or not on this machine
    ├── DataError                       3   the data file, or one of its samples
    │   ├── SampleError                 3   a line is not the sample it should be
    │   ├── TemplateError               3   the chat template is missing or cannot be trusted
    │   └── EmptyWeightsError           3   nothing in the sample would reach the loss
    ├── ModelError                      4   the model or tokenizer cannot be loaded or used
    ├── CheckpointError                 5   a checkpoint cannot be written, found or believed
    │   ├── CheckpointCorrupt           5   a file is not the file that was saved
    │   └── CheckpointMissing           5   a checkpoint that should be there is not
    ├── TrainingError                   6   training went wrong
    │   ├── NonFiniteError              6   a loss or a gradient norm is not a number
    │   ├── RewardError                 6   a reward function raised
    │   └── EngineError                 6   the server that draws completions does not answer as it should
    ├── ExportError                     7   the exported directory is not the model that was trained
    └── RankFailed                      8   a process of the run raised something else, or was killed

A run that was interrupted has saved and is no error; it ends with `EXIT_INTERRUPTED`, so that a queue knows to start it
again.

Every message has the same four parts, because a person needs all four: where it is, what was got, what was expected,
and what to do. The parts stay on the object, so that a test or a tool need not take the sentence apart again.
"""

from functools import partial
from typing import Any

EXIT_INTERRUPTED = 75
"""Saved and stopped before the last step (`EX_TEMPFAIL` of sysexits.h: "try again"); the same command goes on from
there."""


class PlumblineError(Exception):
    """Says where, what was got, what was expected and what to do. Raised as one of its subclasses, never bare."""

    exit_code = 1

    def __init__(self, where: str, *, got: str, expected: str, hint: str) -> None:
        """Builds the one-line message out of its four parts.

        Args:
            where: a place a person can open: `chat.jsonl:17`, `batch.samples_per_step`, `step 12`.
            got: what was found there, in words: `message 2 has role 'bot'`.
            expected: what would have been accepted.
            hint: the next thing to try, preferably a flag or a command.
        """
        super().__init__(f"{where}: {got}; expected {expected}. hint: {hint}")
        self.where = where
        self.got = got
        self.expected = expected
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets a rank hand the error to the process that started it."""
        return partial(type(self), self.where, got=self.got, expected=self.expected, hint=self.hint), ()


class ConfigError(PlumblineError):
    """A setting that no machine and no other setting could make right."""

    exit_code = 2


class PlanRefused(ConfigError):
    """Settings that are fine alone and do not combine; carries the same reason that `plan` prints."""


class DataError(PlumblineError):
    """The data file, or something in it, cannot be trained on."""

    exit_code = 3


class SampleError(DataError):
    """One line of a data file is not the sample it should be."""


class TemplateError(DataError):
    """The tokenizer's chat template is missing, or does not render in a way that tells whose tokens are whose."""


class EmptyWeightsError(DataError):
    """No token of a sample has a weight, so that training on it would do nothing and look healthy."""


class ModelError(PlumblineError):
    """The model or its tokenizer cannot be loaded, or they do not belong together."""

    exit_code = 4


class CheckpointError(PlumblineError):
    """A checkpoint cannot be written, found or believed."""

    exit_code = 5


class CheckpointCorrupt(CheckpointError):
    """A committed file has another size or hash than its manifest says."""


class CheckpointMissing(CheckpointError):
    """A checkpoint that something points to, or that the user demands, is not there."""


class TrainingError(PlumblineError):
    """Training cannot go on."""

    exit_code = 6


class NonFiniteError(TrainingError):
    """The loss or the gradient norm is infinite or not a number; no weight has been moved."""


class RewardError(TrainingError):
    """A reward function raised, or returned something else than a finite number."""


class EngineError(TrainingError):
    """The server that draws completions cannot be reached, refuses, or answers something else."""


class ExportError(PlumblineError):
    """The exported directory, loaded again, is not the model that was trained."""

    exit_code = 7


class RankFailed(PlumblineError):
    """A rank ended otherwise than by an error of this tree; its traceback, if it had one, has been printed."""

    exit_code = 8
