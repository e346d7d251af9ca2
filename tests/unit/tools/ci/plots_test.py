import math
import xml.etree.ElementTree as ElementTree

import pytest

from tools.ci.cells import Point
from tools.ci.plots import HEIGHT, WIDTH, curves, distance, spark


def line(*losses: float) -> list[Point]:
    return [Point(step, loss, 1.0) for step, loss in enumerate(losses, start=1)]


def paths(svg: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in ElementTree.fromstring(svg).iter("path"):
        found.setdefault(path.get("class", ""), []).append(path.get("d", ""))
    return found


def test_a_curve_goes_from_corner_to_corner() -> None:
    plot = curves([line(4.0, 3.0, 2.0)], (), "Loss")
    assert plot is not None
    assert (plot.low, plot.high, plot.first, plot.last) == (2.0, 4.0, 1, 3)
    assert paths(plot.svg) == {"line": [f"M0 4L{WIDTH / 2:g} {HEIGHT / 2:g}L{WIDTH:g} {HEIGHT - 4:g}"]}


def test_the_golden_curve_lies_below_on_the_same_scale() -> None:
    plot = curves([line(4.0, 3.0)], line(4.0, 2.0), "Loss")
    assert plot is not None
    assert list(paths(plot.svg)) == ["golden", "line"]
    assert paths(plot.svg)["golden"][0].endswith(f"L{WIDTH:g} {HEIGHT - 4:g}")
    assert paths(plot.svg)["line"][0].endswith(f"L{WIDTH:g} {HEIGHT / 2:g}")


def test_past_curves_lie_between_and_what_they_share_is_drawn_once() -> None:
    plot = curves([line(4.0, 2.0)], line(4.0, 2.0), "Loss", [line(4.0, 3.0), line(4.0, 3.0), line(4.0, 1.0)])
    assert plot is not None
    assert (plot.low, plot.high) == (1.0, 4.0)
    assert [(name, len(found)) for name, found in paths(plot.svg).items()] == [("golden", 1), ("past", 2), ("line", 1)]


def test_a_loss_that_is_no_number_is_a_marked_gap() -> None:
    plot = curves([line(4.0, 3.0, math.nan, 2.0, math.inf)], (), "Loss")
    assert plot is not None
    assert [len(found) for found in paths(plot.svg).values()] == [2, 2]
    assert paths(plot.svg)["lost"] == [f"M{WIDTH / 2:g} 2v12", f"M{WIDTH:g} 2v12"]


def test_nothing_to_draw_is_no_plot() -> None:
    assert curves([line(math.nan)], (), "Loss") is None
    assert spark([math.nan], [False], "s") == ""


def test_words_of_a_plot_are_escaped() -> None:
    plot = curves([line(1.0)], (), 'a "quoted" <name>')
    assert plot is not None
    assert ElementTree.fromstring(plot.svg).get("aria-label") == 'a "quoted" <name>'


def test_a_spark_line_begins_at_zero_and_marks_what_drifted() -> None:
    assert paths(spark([2.0, 4.0], [False, True], "s")) == {
        "lost": [f"M{WIDTH:g} 0v{HEIGHT:g}"],
        "line": [f"M0 {HEIGHT / 2:g}L{WIDTH:g} 4"],
    }
    assert paths(spark([2.0], [False], "s")) == {"line": [f"M0 4L{WIDTH:g} 4"]}


@pytest.mark.parametrize(
    ("measured", "golden", "expected"),
    [
        (line(2.0, 1.0), line(2.0, 1.1), (pytest.approx(0.1 / 1.1), 2)),
        (line(2.0, 1.0), line(2.0, 1.0), (0.0, 2)),
        (line(math.nan), line(2.0), (math.inf, 1)),
        (line(2.0), line(), None),
    ],
)
def test_the_distance_of_two_curves_is_their_largest_relative_difference(
    measured: list[Point], golden: list[Point], expected: tuple[float, int] | None
) -> None:
    assert distance(measured, golden) == expected
