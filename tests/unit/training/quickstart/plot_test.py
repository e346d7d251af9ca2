from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.metrics.records import StepRecord, ValidationRecord
from training.quickstart.plot import DOTS_PER_INCH, INCHES, draw, smooth
from training.quickstart.report import Rewarded


def step(number: int, loss: float, **metrics: float) -> StepRecord:
    return StepRecord(
        step=number,
        epoch=0,
        loss=loss,
        gradient_norm=1.0,
        learning_rate=1e-3,
        num_samples=4,
        num_tokens=600,
        num_weighted_tokens=200,
        num_microbatches=1,
        seconds=2.0,
        metrics=metrics,
    )


REWARDED = Rewarded(
    title="It is rewarded",
    wanted="a question",
    held_out="32 openings",
    reward_before=0.25,
    reward_after=0.75,
    records=[step(number, 0.1, reward_mean=0.2 + number / 20, seconds_generating=4.0) for number in range(1, 11)],
    prompts=[],
    before=[],
    after=[],
)


def held_out(number: int, loss: float) -> ValidationRecord:
    return ValidationRecord(step=number, loss=loss, num_weighted_tokens=100, seconds=1.0)


def drawn(path: Path, *records: StepRecord | ValidationRecord) -> np.ndarray:
    about = {"title": "A model learns", "loss_unit": "nats per token", "held_out": "24 conversations"}
    draw(records, path, **about, rewarded=REWARDED)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == tuple(round(inches * DOTS_PER_INCH) for inches in INCHES)
        return np.asarray(image.convert("RGB"))


def num_of_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels.astype(int) - colour).max(axis=2) < 30).sum())


def test_the_picture_has_both_losses_in_it(tmp_path: Path) -> None:
    steps = [step(number, 5 - number / 10) for number in range(1, 21)]
    pixels = drawn(tmp_path / "curves.png", held_out(0, 4.9), *steps, held_out(20, 3.1))
    assert num_of_colour(pixels, (0x8A, 0xA4, 0xC8)) > 500, "the training loss"
    assert num_of_colour(pixels, (0xC2, 0x41, 0x0C)) > 500, "the held-out loss and its figures"
    assert num_of_colour(pixels, (0, 0, 0)) > 500, "the labels"
    assert (tmp_path / "curves.png").stat().st_size < 80_000
    assert [each.name for each in tmp_path.iterdir()] == ["curves.png"], "and nothing is left beside it"


def test_a_run_of_one_step_can_be_drawn(tmp_path: Path) -> None:
    pixels = drawn(tmp_path / "curves.png", step(1, 4.0))
    left, right = np.split(pixels, 2, axis=1)
    assert num_of_colour(left, (0xC2, 0x41, 0x0C)) == 0, "nothing was held out"
    assert num_of_colour(right, (0xC2, 0x41, 0x0C)) > 200, "the rewards of what was held out"
    assert num_of_colour(right, (0x8A, 0xA4, 0xC8)) > 200, "the reward of each step"


@pytest.mark.parametrize("num", [1, 2, 10, 200])
def test_smoothing_keeps_a_straight_line_and_the_number_of_points(num: int) -> None:
    line = [2.0 - 0.01 * at for at in range(num)]
    assert smooth(line) == pytest.approx(line)
    assert smooth([1.0, 4.0, 1.0] * 20)[10] == pytest.approx(2.0, abs=0.5)
