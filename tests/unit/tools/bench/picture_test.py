"""The picture of the ratios is one, and replaces the one before."""

from dataclasses import replace
from pathlib import Path

from matplotlib.image import imread

from tools.bench.kept import Kept, Row
from tools.bench.picture import MET, MISSED, WITHOUT, Mark, draw, marks, stacks
from tools.bench.rounds import Spread


def test_each_further_mark_makes_the_picture_higher(tmp_path: Path) -> None:
    path = tmp_path / "ratios.png"
    marks = [Mark("one", Spread(1.0, 2.0, 3.0), 1.5), Mark("other", Spread(0.5, 0.6, 0.7), 1.0)]
    heights = []
    for count in (1, 2):
        draw(marks[:count], path)
        heights.append(imread(path).shape[0])
    assert heights[1] > heights[0] > 0
    assert list(tmp_path.iterdir()) == [path]


def test_the_colours_of_met_and_missed_are_in_it(tmp_path: Path) -> None:
    path = tmp_path / "ratios.png"
    for ratio, channel in ((2.0, 2), (0.5, 0)):
        draw([Mark("one", Spread(ratio, ratio, ratio), 1.0)], path)
        pixels = imread(path)[..., :3]
        strongest = pixels.max(axis=2) - pixels.min(axis=2)
        pixel = pixels.reshape(-1, 3)[strongest.argmax()]
        assert pixel.argmax() == channel, "blue is met, red is missed"


ONE = Spread(1.0, 1.0, 1.0)
PLAIN = Row("loss", "plain", "tokens", ONE, ONE, ONE, ONE, {}, "")


def kept(**changed: object) -> Kept:
    values = {"contender": "ours", "speed_ratio": Spread(1.5, 2.0, 3.0), "memory_ratio": Spread(0.1, 0.2, 0.5)}
    ours = replace(PLAIN, **(values | changed))  # type: ignore[arg-type]  # of each field's own type
    return Kept("loss", "a loss", "2026", "abc", 3, {}, {}, [PLAIN, ours])


def test_a_ratio_of_memory_is_turned_over_and_has_the_turned_target() -> None:
    speed, memory = marks([kept(wanted={"speed": 2.5, "memory": 0.25})])
    assert speed == Mark("loss: ours / plain", Spread(1.5, 2.0, 3.0), 2.5)
    assert memory == Mark("loss: ours / plain, memory", Spread(2.0, 5.0, 10.0), 4.0)
    assert (speed.colour, memory.colour) == (MISSED, MET)


def test_a_case_without_a_target_has_a_mark_without_one_and_what_is_compared_has_its_own() -> None:
    speed, drawn = marks([kept(also_ratio={"tokens_drawn": ONE})])
    assert (speed.target, speed.colour) == (None, WITHOUT)
    assert drawn.label == "loss: ours / plain, tokens drawn"
    # What is wanted is a share of full packs, and no ratio.
    assert marks([kept(wanted={"percent_full": 99.0})]) == []


def test_parts_of_a_whole_are_stacked_below_the_ratios(tmp_path: Path) -> None:
    line = kept(also={"seconds": 3.0, "part_data": 25.0, "part_forward": 75.0})
    assert stacks([line]) == {"loss: ours": {"data": 25.0, "forward": 75.0}}
    path = tmp_path / "ratios.png"
    draw(marks([line]), path)
    without = imread(path).shape[0]
    draw(marks([line]), path, stacks([line]))
    assert imread(path).shape[0] > without
