"""metrics.jsonl: one JSON object a line for each step, validation and checkpoint, on disk as soon as it is known.

    {"schema": 1, "kind": "step", "step": 12, "epoch": 0, "loss": 2.31, "gradient_norm": 0.8, "learning_rate": 2e-05, …}
    {"schema": 1, "kind": "validation", "step": 12, "loss": 2.40, "num_weighted_tokens": 5120}
    {"schema": 1, "kind": "checkpoint", "step": 12, "bytes_written": 130512, "seconds_stalled": 0.1, "seconds": 0.4}

`step` counts the steps taken when what the line tells of was there, so `step` 12 and the checkpoint step-00000012 are
the same moment. The file has each step once: a run that goes on from step 10 first drops the lines after 10, which the
process before it wrote and lost. Numbers are JSON numbers with all their digits, so two runs can be compared bit for
bit.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from training.whole import write_whole

SCHEMA = 1
"""Raised when a key is renamed or changes its meaning; new keys do not raise it."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did. Counts are over all ranks."""

    step: int
    """Steps taken, this one included."""
    epoch: int
    loss: float
    """Mean over weighted tokens, in nats, before the update."""
    gradient_norm: float
    """L2 norm over all trained weights, before clipping."""
    learning_rate: float
    num_samples: int
    num_tokens: int
    num_weighted_tokens: int
    num_microbatches: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    """What the algorithm wants remembered beside its loss."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens read, whether weighted or not: the speed of the machine, not of the data."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class ValidationRecord:
    """The loss over the whole validation set, with no weight moved."""

    step: int
    loss: float
    num_weighted_tokens: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    """As in a step's record, over the whole set."""


@dataclass(frozen=True)
class CheckpointRecord:
    """What a committed checkpoint cost."""

    step: int
    """Steps taken when it was captured; more may have been by the time it was committed."""
    bytes_written: int
    """Of all ranks' files."""
    seconds_stalled: float
    """How long training waited for it."""
    seconds: float
    """From the first byte to the end of rotation; beside the steps, if it was written in the background."""


Record = StepRecord | ValidationRecord | CheckpointRecord
_KINDS: dict[str, type[Record]] = {
    "step": StepRecord,
    "validation": ValidationRecord,
    "checkpoint": CheckpointRecord,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Records:
    """The open file. Use as a context manager."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """Opens for appending after the records of `resumed_step` and before; 0 starts the file anew."""
        self.path = path
        _drop_after(path, resumed_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Appends a line and hands it to the operating system: it survives the death of this process."""
        line = {"schema": SCHEMA, "kind": _NAMES[type(record)], **asdict(record)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until the lines survive the death of the machine too; done before each checkpoint."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def read_records(path: Path) -> Iterator[Record]:
    """Each record of the file, in order; a last line that was cut off is not one."""
    for line in _whole_lines(path):
        values = json.loads(line)
        assert values.pop("schema") == SCHEMA, f"{path}: written by another version"
        yield _KINDS[values.pop("kind")](**values)


def _whole_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


def _drop_after(path: Path, step: int) -> None:
    """Rewrites the file without later records, through a second file, so that no crash can cut it."""
    kept = [line for line in _whole_lines(path) if step > 0 and _step_of(line) <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> int:
    values: dict[str, Any] = json.loads(line)
    return int(values["step"])
