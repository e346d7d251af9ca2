"""What a person sees while a run runs."""

import io
import os
from contextlib import suppress
from dataclasses import replace

import pytest

from training.metrics.progress import ProgressLine, duration
from training.metrics.records import StepRecord, ValidationRecord

STEP = StepRecord(1, 0, 2.5, 0.75, 2e-5, 4, 1500, 40, 2, 0.5)


def shown(*, steps_between: int = 1, num_steps: int = 4) -> list[str]:
    file = io.StringIO()
    with ProgressLine(first_step=0, num_steps=num_steps, steps_between=steps_between, file=file) as progress:
        for step in range(1, num_steps + 1):
            progress.show(replace(STEP, step=step))
    return file.getvalue().splitlines()


def test_line_has_position_loss_speed_and_time_left() -> None:
    assert shown()[0] == "step 1/4  loss 2.5000  gradient norm 0.75  rate 2e-05  3,000 tokens/s  2s left"


def test_lines_come_every_few_steps_and_at_the_end() -> None:
    assert [line.split("  ")[0] for line in shown(steps_between=3, num_steps=7)] == ["step 3/7", "step 6/7", "step 7/7"]


def test_time_left_follows_the_recent_speed() -> None:
    file = io.StringIO()
    with ProgressLine(first_step=0, num_steps=100, steps_between=1, file=file) as progress:
        progress.show(replace(STEP, seconds=100.0))
        for step in range(2, 40):
            progress.show(replace(STEP, step=step, seconds=1.0))
    assert file.getvalue().splitlines()[-1].endswith("1,500 tokens/s  1m 01s left")


def test_validation_has_a_line_of_its_own() -> None:
    file = io.StringIO()
    with ProgressLine(first_step=0, num_steps=4, steps_between=3, file=file) as progress:
        progress.show(ValidationRecord(2, 1.25, 10, 0.1))
        progress.say("saved")
    assert file.getvalue() == "step 2/4  validation loss 1.2500\nsaved\n"


def test_terminal_gets_one_line_redrawn_and_said_lines_above_it() -> None:
    ours, theirs = os.openpty()
    with (
        os.fdopen(theirs, "w") as terminal,
        ProgressLine(first_step=0, num_steps=2, steps_between=1, file=terminal) as progress,
    ):
        progress.show(STEP)
        progress.say("saved [here]")
        progress.show(replace(STEP, step=2))
        terminal.flush()
    seen = b""
    with suppress(OSError):  # What was written comes in parts; then, as it is closed, an error.
        while part := os.read(ours, 100_000):
            seen += part
    os.close(ours)
    assert b"saved [here]" in seen
    assert b"\x1b[" in seen, "it is redrawn in place"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (3600, "1h 00m"), (7799, "2h 09m")],
)
def test_duration_reads_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
