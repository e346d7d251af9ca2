"""Time counts once, for the part that is innermost, and only that of the main thread."""

import threading

import pytest

from tests.benchmark.speed.parts import Parts


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


class Work:
    """A step, with a part within it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def step(self) -> str:
        self.clock.now += 1.0
        self.inner(2.0)
        self.clock.now += 4.0
        return "done"

    def inner(self, seconds: float) -> None:
        self.clock.now += seconds


def watched() -> tuple[Parts, type[Work], Clock]:
    clock = Clock()
    parts = Parts(clock)

    class Watched(Work):
        step, inner = Work.step, Work.inner

    parts.charge("step", Watched, "step")
    parts.charge("inner", Watched, "inner")
    return parts, Watched, clock


def test_what_is_within_a_part_and_a_part_itself_is_not_the_first_ones() -> None:
    parts, kind, clock = watched()
    assert kind(clock).step() == "done"
    clock.now += 100.0
    assert parts.seconds == {"step": 5.0, "inner": 2.0}
    kind(clock).inner(3.0)
    assert parts.seconds == {"step": 5.0, "inner": 5.0}


def test_a_part_that_fails_is_counted_and_over() -> None:
    parts, _, clock = watched()

    def fails() -> None:
        with parts.of("fails"):
            clock.now += 1.0
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    with parts.of("other"):
        clock.now += 2.0
    assert parts.seconds == {"fails": 1.0, "other": 2.0}


def test_another_thread_is_not_counted() -> None:
    parts, kind, clock = watched()
    thread = threading.Thread(target=kind(clock).step)
    thread.start()
    thread.join()
    assert clock.now == 12.0
    assert not parts.seconds
