"""What rank 0 does alone while the others wait: as long as it takes, and no longer than rank 0 is there.

    rank 0        work ─────────────────────────────── its end, or its error
                  │ still │ still │ still │ still │    │
    other ranks   wait ─────────────────────────────── go on, or raise the same

A rank that waits longer than `collective_seconds_max` gives up: so it knows of one that hangs or is lost. Writing and
verifying the export of a large model takes longer than anybody wants to wait for a lost machine. So a thread of rank 0
says several times a second that the work goes on, and it is for these messages that the others wait.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from training.errors import PlumblineError
from training.parallel.backend import Ranks

T = TypeVar("T")

SECONDS_BETWEEN_MESSAGES = 0.25
"""Well below a second, the smallest limit; a message takes about a millisecond."""

Said = tuple[bool, PlumblineError | None]
"""By rank 0: whether the work is over, and what came of it if that was an error."""
GOES_ON: Said = (False, None)


def on_first(ranks: Ranks, work: Callable[[], T]) -> T | None:
    """What `work` returns on rank 0, and None on the others, once it is over. All must call it.

    Args:
        ranks: who waits. `work` must tell them nothing, as its messages would meet those of the thread.
        work: is called on rank 0.

    Raises:
        PlumblineError: as `work` raised it, on all ranks. Anything else is raised on rank 0 alone, whose death ends the
            others.
    """
    if ranks.num_ranks == 1:
        return work()
    if ranks.rank > 0:
        is_over, error = GOES_ON
        while not is_over:
            is_over, error = ranks.gather(GOES_ON)[0]
        if error is not None:
            raise error
        return None
    ends = threading.Event()

    def say_that_it_goes_on() -> None:
        # If a rank is lost, so is the last message, which is sent from where it can be raised.
        with suppress(RuntimeError):
            while not ends.wait(SECONDS_BETWEEN_MESSAGES):
                ranks.gather(GOES_ON)

    def end(error: PlumblineError | None) -> None:
        ends.set()
        thread.join()
        ranks.gather((True, error))

    thread = threading.Thread(target=say_that_it_goes_on, name="rank 0 is at work", daemon=True)
    thread.start()
    try:
        answer = work()
    except PlumblineError as error:
        end(error)
        raise
    except BaseException:
        ends.set()
        raise
    end(None)
    return answer
