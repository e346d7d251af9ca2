"""Says which part of a program's time went where, by standing around functions while it runs.

Nothing of the toolkit knows of it: a function is replaced by one that notes the time and calls it. Time counts once:
what a part calls that is a part itself is not the first one's.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Parts:
    """Seconds of the main thread by part."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        """Counts by a clock."""
        self.seconds: Counter[str] = Counter()
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    def charge(self, part: str, owner: Any, *names: str) -> None:
        """Charges a part with every call of these functions of a module or class, from now on."""
        for name in names:
            setattr(owner, name, self._around(part, getattr(owner, name)))

    def _around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def charged(*words: Any, **named: Any) -> Any:
            # Saving has a thread of its own, whose time is beside that of the steps.
            if threading.current_thread() is not threading.main_thread():
                return function(*words, **named)
            with self.of(part):
                return function(*words, **named)

        return charged

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Charges a part while entered."""
        self._turn()
        self._open.append(part)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Gives the time since the last turn to whose it was."""
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
