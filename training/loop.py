"""The loop around the step: records, validation, checkpoints, and an orderly end at a signal.

It knows nothing of losses, models or tensors. What it calls is handed to it, so that one loop serves every recipe and
its rules can be tested without training anything.

Ctrl-C, SIGTERM and SIGUSR1, by which a queue says that it will soon take the machine away, let the step in progress
finish, then save, then stop. A second Ctrl-C stops at once and loses what came after the last checkpoint.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Protocol

from training.metrics.progress import ProgressLine
from training.metrics.records import Records, StepRecord, ValidationRecord

PATIENCE = "patience"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Outcome:
    """How the loop ended; everything up to `step` is saved."""

    step: int
    """Steps taken, over all processes of the run."""
    stopped_by: str | None
    """SIGINT, SIGTERM, SIGUSR1, steps_this_session_max or patience; None if the last step was taken."""

    @property
    def is_finished(self) -> bool:
        """True if there is nothing to go on with."""
        return self.stopped_by in (None, PATIENCE)


@dataclass
class Patience:
    """Counts validations since the last one that was better. What it has heard is saved with each checkpoint."""

    num_validations: int | None
    """In a row that are not better, after which the run is over; None is never."""
    improvement_min: float = 0.0
    """How much lower than the best a loss must be to be better."""
    heard: "Heard" = field(default_factory=lambda: Heard())

    def hear(self, record: ValidationRecord) -> None:
        """Counts a validation."""
        best, num_since = self.heard.best, self.heard.num_since + 1
        if best is None or (record.loss < best and record.loss <= best - self.improvement_min):
            best, num_since = record.loss, 0
        self.heard = Heard(best, num_since, record.step, record.loss)

    def is_over(self) -> bool:
        """True if there were as many in a row as it bears."""
        return self.num_validations is not None and self.heard.num_since >= self.num_validations


@dataclass(frozen=True)
class Heard:
    """What validations have come to."""

    best: float | None = None
    """Loss of the last one that was better than the best before."""
    num_since: int = 0
    """Validations since."""
    step: int = 0
    """Steps taken at the last one."""
    loss: float | None = None
    """Of the last one."""


class Saves(Protocol):
    """What the loop asks of who saves; `training.checkpoint.saver` answers."""

    @property
    def is_ready(self) -> bool:
        """True if no save is being written."""
        ...

    def collect(self) -> None:
        """Waits for the save that is being written, and raises what went wrong with it."""
        ...

    def save(self, step: int, *, goes_on: bool) -> None:
        """Commits a checkpoint, or begins to if training goes on."""
        ...


Said = tuple[str | None, bool]
"""Of one rank or of all: why to stop, and whether the save before is written."""


class StopRequest:
    """Notices signals while it is entered, and restores whatever handled them before."""

    def __init__(self, gather: Callable[[Said], list[Said]] = lambda said: [said], *, says: bool = True) -> None:
        """Notices them for all ranks.

        Args:
            gather: every rank's value, in their order; a signal reaches ranks at different moments, or one alone.
            says: whether this process tells people what it will do.
        """
        self.reason: str | None = None
        self._agreed: str | None = None
        self._gather = gather
        self._says = says
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def agreed(self, *, is_ready: bool) -> Said:
        """Why all ranks stop after this step, or None, and whether all are ready; the same on each. All must ask."""
        everyone = self._gather((self.reason, is_ready))
        self._agreed = next((reason for reason, _ in everyone if reason is not None), None)
        return self._agreed, all(ready for _, ready in everyone)

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread alone and refuses to set handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._handle) for each in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Others heard the signal first and all have stopped by it: here it is still to come, and has been obeyed.
        is_late = self._agreed is not None and self.reason is None
        for each, handler in self._before.items():
            signal.signal(each, signal.SIG_IGN if is_late and each.name == self._agreed else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        # os.write, since print may be what the signal interrupted.
        if self._says:
            os.write(2, f"\n{self.reason}: finishing this step, then saving. Ctrl-C again stops at once.\n".encode())


def run(
    *,
    first_step: int,
    num_steps: int,
    take_step: Callable[[int], StepRecord],
    validate: Callable[[int], ValidationRecord] | None,
    saver: Saves,
    records: Records | None,
    progress: ProgressLine | None,
    stop: StopRequest,
    patience: Patience,
    checkpoint_steps_between: int | None,
    validation_steps_between: int | None,
    steps_this_session_max: int | None,
) -> Outcome:
    """Takes the steps that are left, and returns when all are taken or something asked to stop.

    Args:
        first_step: steps taken before; their records, validations and checkpoints exist.
        num_steps: steps of the whole run.
        take_step: takes the step that has the given number of steps before it.
        validate: computes the validation loss after the given number of steps; None if there is nothing to validate on.
            Called before the first step, every `validation_steps_between` and after the last.
        saver: commits a checkpoint every `checkpoint_steps_between`, after the last step, and before an early stop. One
            that it writes beside the steps is collected at the end of the step in which every rank is done with it.
        records: gets every record before anything that depends on it is saved. None on ranks that do not write.
        progress: gets every record for people to see. None on ranks that do not.
        stop: is asked after each step.
        patience: hears each validation loss; when it is over, so is the run.
        checkpoint_steps_between: None saves only at the end.
        validation_steps_between: None validates only at the ends.
        steps_this_session_max: None takes all that are left.
    """

    def keep(record: StepRecord | ValidationRecord) -> None:
        if records is not None:
            records.write(record)
        if progress is not None:
            progress.show(record)
        if isinstance(record, ValidationRecord):
            patience.hear(record)

    if validate is not None and first_step == 0:
        keep(validate(0))
    if patience.is_over():
        return Outcome(first_step, PATIENCE if first_step < num_steps else None)
    for step in range(first_step, num_steps):
        keep(take_step(step))
        taken, is_last = step + 1, step + 1 == num_steps
        if validate is not None and (is_last or _is_due(taken, validation_steps_between)):
            keep(validate(taken))
        reason, is_ready = stop.agreed(is_ready=saver.is_ready)
        if is_ready:
            saver.collect()
        if reason is None and taken - first_step == steps_this_session_max:
            reason = "steps_this_session_max"
        if patience.is_over():
            reason = PATIENCE
        if is_last or reason is not None or _is_due(taken, checkpoint_steps_between):
            if records is not None:
                records.sync()
            saver.save(taken, goes_on=not is_last and reason is None)
        if reason is not None and not is_last:
            return Outcome(taken, reason)
    return Outcome(num_steps, None)


def _is_due(taken: int, steps_between: int | None) -> bool:
    return steps_between is not None and taken % steps_between == 0
