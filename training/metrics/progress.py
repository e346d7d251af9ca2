"""Shows a run while it runs: one line that is redrawn on a terminal, plain lines anywhere else.

A log file or a pipe gets a line every few steps with the same four facts: where, loss, speed, how long still.
"""

import sys
from collections import deque
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from training.metrics.records import CheckpointRecord, Record, StepRecord, ValidationRecord

NUM_STEPS_AVERAGED = 20
"""Steps whose mean speed gives the time left: enough to be steady, few enough to notice a change."""


class ProgressLine:
    """Prints records as they come. Use as a context manager, so that the terminal is left in order."""

    def __init__(self, *, first_step: int, num_steps: int, steps_between: int, file: TextIO | None = None) -> None:
        """Shows steps after `first_step` up to `num_steps`, every `steps_between` of them and the last."""
        self._num_steps = num_steps
        self._steps_between = steps_between
        self._file = file if file is not None else sys.stdout
        self._recent: deque[StepRecord] = deque(maxlen=NUM_STEPS_AVERAGED)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self._file.isatty():
            console = Console(file=self._file)
            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
            self._task = self._bar.add_task("starting", total=num_steps, completed=first_step)

    def show(self, record: Record) -> None:
        """Shows one record. A validation or a checkpoint is always a line of its own."""
        if isinstance(record, CheckpointRecord):
            self.say(
                f"step {record.step}/{self._num_steps}  saved, {record.bytes_written / 1e6:,.1f} MB in "
                f"{record.seconds:.1f} s; training waited {record.seconds_stalled:.1f} s"
            )
            return
        if isinstance(record, ValidationRecord):
            self.say(f"step {record.step}/{self._num_steps}  validation loss {record.loss:.4f}")
            return
        self._recent.append(record)
        line = self.line(record)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=record.step, description=line)
        elif record.step % self._steps_between == 0 or record.step == self._num_steps:
            self.say(line)

    def line(self, record: StepRecord) -> str:
        """The step in words: position, loss, speed over the last steps, and the time that the rest will take."""
        seconds = sum(each.seconds for each in self._recent)
        speed = sum(each.num_tokens for each in self._recent) / seconds if seconds > 0 else 0.0
        left = (self._num_steps - record.step) * seconds / max(len(self._recent), 1)
        return (
            f"step {record.step}/{self._num_steps}  loss {record.loss:.4f}  gradient norm {record.gradient_norm:.3g}  "
            f"rate {record.learning_rate:.3g}  {speed:,.0f} tokens/s  {duration(left)} left"
        )

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._file, flush=True)

    def __enter__(self) -> "ProgressLine":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """A length of time as people say it: 45s, 3m 05s, 2h 10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
