"""Saves while training goes on: what is saved is copied at the step's end, and a thread writes the copy.

    step 9 │ step 10 │ copy │ step 11 │ step 12 │ step 13 │ said │ step 14
                            └ write, flush, hash, commit, rotate ┘

One save is in flight at most: the next one waits for it, and so do the end of a run and a stop, after which there is
nothing to go on with. Those two save where the tensors are, uncopied. A save that failed is raised at the next step's
end, on all ranks at the same one, since the ranks tell each other whether theirs is over with the message that agrees
on stopping. What was saved earlier is untouched by it.

The copy is in CPU memory and costs as much as this rank's share of a checkpoint: with AdamW three times the trained
weights in fp32, from the save's beginning until it is written. It is not kept in between.

Ranks commit through a process group of their own (`Backend.apart`), because messages of a thread and messages of the
steps in one group would meet. Files in the unfinished directory could have been the barrier instead. They would ask for
polling, for a file system that shows one machine's files to the next at once, and for a way to notice that whoever one
waits for is dead; a group has all three, and `save` stays the same function, in a thread or not.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from training.checkpoint.state import Tensors
from training.metrics.records import CheckpointRecord

Content = tuple[Tensors, Mapping[str, Any]]
"""Tensors by the file that this rank writes, and the state."""


@dataclass(frozen=True)
class _InFlight:
    step: int
    seconds_stalled: float
    written: "Future[tuple[int, float]]"
    """Bytes and seconds."""


class Saver:
    """Takes one save at a time. Use as a context manager, which waits for the last one."""

    def __init__(
        self,
        capture: Callable[[], Content],
        write: Callable[[int, Content], int],
        report: Callable[[CheckpointRecord], None],
        *,
        asynchronous: bool,
    ) -> None:
        """Saves in a thread if `asynchronous`, and where training goes on.

        Args:
            capture: what is saved, uncopied.
            write: commits it as the checkpoint after so many steps, and returns its bytes.
            report: is told of each checkpoint that is committed.
            asynchronous: False writes everything before training goes on.
        """
        self._capture = capture
        self._write = write
        self._report = report
        self._asynchronous = asynchronous
        self._in_flight: _InFlight | None = None

    @property
    def is_ready(self) -> bool:
        """True if nothing is being written, so that `collect` will not wait."""
        return self._in_flight is None or self._in_flight.written.done()

    def collect(self) -> None:
        """Waits for what is being written, if anything, and reports it.

        Raises:
            CheckpointError: it could not be committed.
        """
        if self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        bytes_written, seconds = in_flight.written.result()
        self._report(CheckpointRecord(in_flight.step, bytes_written, in_flight.seconds_stalled, seconds))

    def save(self, step: int, *, goes_on: bool) -> None:
        """Commits the checkpoint after `step` steps, or begins to.

        Args:
            step: optimizer steps taken.
            goes_on: whether steps follow, beside which it can be written.

        Raises:
            CheckpointError: this one, or the one before, could not be committed.
        """
        began = time.perf_counter()
        self.collect()
        tensors, state = self._capture()
        written: Future[tuple[int, float]] = Future()
        if self._asynchronous and goes_on:
            tensors = {
                file: {name: each.to("cpu", copy=True) for name, each in of.items()} for file, of in tensors.items()
            }
            arguments = (written, step, (tensors, state))
            threading.Thread(target=self._run, args=arguments, name=f"save of step {step}", daemon=True).start()
            self._in_flight = _InFlight(step, time.perf_counter() - began, written)
            return
        self._run(written, step, (tensors, state))
        self._in_flight = _InFlight(step, time.perf_counter() - began, written)
        self.collect()

    def _run(self, written: "Future[tuple[int, float]]", step: int, content: Content) -> None:
        began = time.perf_counter()
        try:
            written.set_result((self._write(step, content), time.perf_counter() - began))
        except BaseException as error:
            written.set_exception(error)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.collect()
        elif not issubclass(kind, KeyboardInterrupt):
            # What failed is no reason to lose the checkpoint that is nearly written, and is what has to be reported.
            with suppress(Exception):
                self.collect()
