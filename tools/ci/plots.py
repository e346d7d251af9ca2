"""Plots as SVG text: lines that stretch to any width, and no words, which keep their size beside them on a phone.

Colours are classes (templates/page.css), since a page knows light from dark and an SVG file does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tools.ci.cells import Point

#: The box that a plot is drawn in; the page stretches it.
WIDTH, HEIGHT = 300.0, 120.0


@dataclass(frozen=True)
class Plot:
    """A drawing, the words for whoever cannot see it, and the ends of its axes."""

    svg: str
    low: float
    high: float
    first: int
    last: int


def curves(
    lines: Sequence[Sequence[Point]], golden: Sequence[Point], says: str, past: Sequence[Sequence[Point]] = ()
) -> Plot | None:
    """Loss curves over past ones and their golden one, the broad line below. None if there is no finite loss to draw.

    A loss that is not finite is a gap with a mark at the upper edge: a diverging run must not look like a short one.
    """
    points = [point for line in [*lines, golden, *past] for point in line]
    losses = [point.loss for point in points if math.isfinite(point.loss)]
    if not losses:
        return None
    low, high = min(losses), max(losses)
    first, last = min(point.step for point in points), max(point.step for point in points)

    def place(point: Point) -> tuple[float, float]:
        across = (point.step - first) / max(last - first, 1)
        up = (point.loss - low) / ((high - low) or 1.0)
        return round(across * WIDTH, 1), round((1 - up) * (HEIGHT - 8) + 4, 1)

    drawn = [f'<path class="golden" d="{_path([place(p) for p in part])}"/>' for part in stretches(golden)]
    # What many commits share is drawn once.
    before = dict.fromkeys(_path([place(p) for p in part]) for line in past for part in stretches(line))
    drawn += [f'<path class="past" d="{path}"/>' for path in before]
    for line in lines:
        drawn += [f'<path class="line" d="{_path([place(p) for p in part])}"/>' for part in stretches(line)]
        lost = [point.step for point in line if not math.isfinite(point.loss)]
        drawn += [f'<path class="lost" d="M{(at - first) / max(last - first, 1) * WIDTH:g} 2v12"/>' for at in lost]
    return Plot(_svg(drawn, says), low, high, first, last)


def spark(values: Sequence[float], marked: Sequence[bool], says: str) -> str:
    """One figure over commits, the newest at the right; a marked one has a line through it."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    high = max(finite) or 1.0
    step = WIDTH / max(len(values) - 1, 1)
    places = [
        (round(at * step, 1), round((1 - value / high) * (HEIGHT - 8) + 4, 1))
        for at, value in enumerate(values)
        if math.isfinite(value)
    ]
    marks = [f'<path class="lost" d="M{at * step:g} 0v{HEIGHT:g}"/>' for at, bad in enumerate(marked) if bad]
    # A single point has no line to be part of.
    drawn = [f'<path class="line" d="{_path(places if len(places) > 1 else [*places, (WIDTH, places[0][1])])}"/>']
    return _svg([*marks, *drawn], says)


def distance(line: Sequence[Point], golden: Sequence[Point]) -> tuple[float, int] | None:
    """The largest relative difference of two curves' losses and its step; infinite where only one is a number.

    None if they have no step in common.
    """
    wanted = {point.step: point.loss for point in golden}
    pairs = [(point.loss, wanted[point.step], point.step) for point in line if point.step in wanted]
    return max(((_apart(loss, held_against), step) for loss, held_against, step in pairs), default=None)


def _apart(loss: float, held_against: float) -> float:
    if loss == held_against:
        return 0.0
    if not (math.isfinite(loss) and math.isfinite(held_against)):
        return math.inf
    return abs(loss - held_against) / (abs(held_against) or 1.0)


def stretches(line: Sequence[Point]) -> list[list[Point]]:
    """The stretches of a curve between its losses that are not finite."""
    parts: list[list[Point]] = [[]]
    for point in line:
        if math.isfinite(point.loss):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _path(places: Sequence[tuple[float, float]]) -> str:
    ends = "h0.1" if len(places) == 1 else ""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places) + ends


def _svg(drawn: Sequence[str], says: str) -> str:
    return (
        f'<svg class="plot" role="img" aria-label="{escape(says)}" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        f'preserveAspectRatio="none">{"".join(drawn)}</svg>'
    )
