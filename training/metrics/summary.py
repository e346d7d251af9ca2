"""summary.json and the last words of a run: what went in, what was left out and why, what came out.

Every sample of a file is in exactly one count, so nothing is dropped without a number that says so. For conversations

    num_samples_read  =  num_examples + the sum of samples_skipped

Plain text is cut into blocks, so there examples are blocks and the equation is not owed.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from training.metrics.progress import duration
from training.metrics.records import CheckpointRecord, Record, StepRecord, ValidationRecord
from training.whole import write_whole


@dataclass(frozen=True)
class FileSummary:
    """What became of the lines of one data file."""

    path: str
    num_samples_read: int
    """Lines that hold something, usable or not."""
    num_examples: int
    """Conversations, or blocks of text, that came out."""
    num_truncated: int
    """Of these, how many lost their end."""
    samples_skipped: Mapping[str, int] = field(default_factory=dict)
    """Samples that gave no example, by reason."""
    first_skipped: str | None = None
    """The whole message about the first of them."""
    keys_ignored: Mapping[str, int] = field(default_factory=dict)
    """Keys of samples that nothing reads, and how often each was seen."""

    def describe(self) -> str:
        """The counts in a sentence."""
        skipped = ", ".join(f"{count} {reason}" for reason, count in self.samples_skipped.items()) or "none"
        text = (
            f"{self.path}: {self.num_samples_read} samples read, skipped: {skipped}, truncated: {self.num_truncated}, "
            f"{self.num_examples} examples"
        )
        if self.first_skipped:
            text += f"; first skipped: {self.first_skipped}"
        return text + (f"; keys nobody reads: {', '.join(self.keys_ignored)}" if self.keys_ignored else "")


@dataclass(frozen=True)
class DataSummary:
    """What a run trains and validates on, and what became of everything in its files."""

    files: Sequence[FileSummary]
    num_training: int
    num_validation: int
    num_tokens: int
    """Tokens of all training examples, each counted once."""
    num_weighted_tokens: int
    """Of these, how many the loss sees."""

    def describe(self) -> str:
        """A line for each file, and one for what they come to."""
        return "\n".join(
            [
                *(f"data        {each.describe()}" for each in self.files),
                f"examples    {self.num_training} to train on ({self.num_tokens:,} tokens, "
                f"{self.num_weighted_tokens:,} of them learned), {self.num_validation} to validate on",
            ]
        )


@dataclass(frozen=True)
class RunSummary:
    """The whole run, over all the processes that took part in it."""

    num_steps: int
    num_steps_planned: int
    num_tokens: int
    """Tokens of all steps, a sample counted each time it is seen."""
    seconds: float
    """Time spent in steps."""
    loss_first: float | None
    loss_last: float | None
    validation_loss_first: float | None
    validation_loss_last: float | None
    num_checkpoints: int
    """Committed, whether they are still there or not."""
    seconds_saving: float
    """Time from the first byte of each to the end of its rotation."""
    seconds_stalled: float
    """Time that training waited for them, which `seconds` is without."""
    data: DataSummary
    stopped_by: str | None = None
    """What ended the run before its last step; None if nothing did."""
    is_finished: bool = True
    """False if it is to be gone on with."""
    exports: Mapping[str, str] = field(default_factory=dict)
    """Directory of each export, verified."""

    def describe(self) -> str:
        """The summary in a few lines."""
        speed = self.num_tokens / self.seconds if self.seconds > 0 else 0.0
        lines = [
            self.data.describe(),
            f"steps       {self.num_steps} of {self.num_steps_planned}, {self.num_tokens:,} tokens in "
            f"{duration(self.seconds)} ({speed:,.0f} tokens/s)",
        ]
        if self.loss_first is not None and self.loss_last is not None:
            lines.append(f"loss        {self.loss_first:.4f} → {self.loss_last:.4f}")
        if self.validation_loss_first is not None and self.validation_loss_last is not None:
            lines.append(f"validation  {self.validation_loss_first:.4f} → {self.validation_loss_last:.4f}")
        if self.num_checkpoints:
            lines.append(
                f"checkpoints {self.num_checkpoints} written in {duration(self.seconds_saving)}, for which training "
                f"waited {duration(self.seconds_stalled)}"
            )
        lines += [f"{kind:<11} {directory}" for kind, directory in self.exports.items()]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Writes summary.json in one piece."""
        write_whole(path, json.dumps(asdict(self), indent=2) + "\n")


def summarize(
    records: Iterable[Record],
    data: DataSummary,
    *,
    num_steps_planned: int,
    stopped_by: str | None = None,
    is_finished: bool = True,
    exports: Mapping[str, str] | None = None,
) -> RunSummary:
    """The summary of a run from its records, which have each step once whatever happened on the way."""
    steps: list[StepRecord] = []
    validation_losses: list[float] = []
    checkpoints: list[CheckpointRecord] = []
    for record in records:
        match record:
            case StepRecord():
                steps.append(record)
            case ValidationRecord():
                validation_losses.append(record.loss)
            case CheckpointRecord():
                checkpoints.append(record)
    return RunSummary(
        num_steps=len(steps),
        num_steps_planned=num_steps_planned,
        num_tokens=sum(step.num_tokens for step in steps),
        seconds=sum(step.seconds for step in steps),
        loss_first=steps[0].loss if steps else None,
        loss_last=steps[-1].loss if steps else None,
        validation_loss_first=validation_losses[0] if validation_losses else None,
        validation_loss_last=validation_losses[-1] if validation_losses else None,
        num_checkpoints=len(checkpoints),
        seconds_saving=sum(each.seconds for each in checkpoints),
        seconds_stalled=sum(each.seconds_stalled for each in checkpoints),
        data=data,
        stopped_by=stopped_by,
        is_finished=is_finished,
        exports=dict(exports or {}),
    )


def added(*counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of several stages as one, sorted by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))
