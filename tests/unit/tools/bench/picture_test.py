"""The picture of the ratios is one, and replaces the one before."""

from pathlib import Path

from matplotlib.image import imread

from tools.bench.picture import Mark, draw
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
