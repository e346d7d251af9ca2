"""How the newest measurement of each cell differs from the ones before it, and from the other cells of its row.

Losses are held against the cell's own tolerance, times against the median of the last few on the same hardware: a time
is noisy, so it is slower only if it is so by a ratio and by more than a second.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations, pairwise
from statistics import median

from tools.ci.cells import Point
from tools.ci.plots import distance, spark, stretches
from tools.ci.store import Record

#: How many measurements before the newest a time is held against.
WINDOW = 5

#: How many curves of a cell are drawn over each other, the newest.
CURVES = 8

#: Times the usual that all phases of a cell may write, and by how much more: a log is a line longer, now and then.
BYTES_RATIO, BYTES_LEAST = 1.5, 100_000

#: Below this a phase is never called slower: a machine that does something else for a moment is not a drift.
SECONDS_LEAST = 1.0


@dataclass(frozen=True)
class Drift:
    """One thing that is not as it was."""

    cell: str
    says: str

    def __str__(self) -> str:
        """A line."""
        return f"{self.cell}: {self.says}"


@dataclass(frozen=True)
class Past:
    """A cell's seconds over commits as a plot, and its curves before the newest, for the page."""

    svg: str
    first: str
    last: str
    says: str
    curves: tuple[tuple[Point, ...], ...] = ()


def drifts(records: Sequence[Record], ratio: float) -> list[Drift]:
    """Everything that has drifted, by cell.

    Args:
        records: the history, the oldest first.
        ratio: how many times the usual seconds a phase may take.
    """
    found: list[Drift] = []
    for history in by_cell(records).values():
        newest, before = history[-1], [record for record in history[:-1] if record.proven]
        if before:
            found += _loss(newest, before[-1])
            found += _phases(newest, before[-WINDOW:], ratio)
            found += _bytes(newest, before[-WINDOW:])
    return sorted([*found, *_rows(records)], key=lambda drift: drift.cell)


def by_cell(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """The measurements of each cell on each kind of hardware, the oldest first."""
    histories: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        histories[record.cell, record.hardware].append(record)
    return dict(histories)


def past_of(history: Sequence[Record]) -> Past | None:
    """The plot of a cell's seconds, with a mark at each commit where its loss left the curve before it."""
    if not history:
        return None
    marked = [False] + [bool(list(_loss(now, before))) for before, now in pairwise(history)]
    seconds = [record.seconds for record in history]
    first, last = history[0], history[-1]
    says = f"{len(history)} measurements on {last.hardware}, {min(seconds):.1f} to {max(seconds):.1f} s, "
    says += f"the last {seconds[-1]:.1f} s."
    if any(marked):
        commits = ", ".join(record.commit for record, bad in zip(history, marked, strict=True) if bad)
        says += f" A line through it marks a loss that left its curve: {commits}."
    before = tuple(record.curve for record in history[-CURVES:-1] if record.curve)
    return Past(spark(seconds, marked, f"Seconds of {last.cell} over commits"), first.commit, last.commit, says, before)


STYLE = """
text { font: 12px system-ui, sans-serif; fill: #565a62; } .head { font-size: 14px; fill: #1b1d21; }
path { fill: none; stroke: #1b1d21; stroke-width: 1.5; } circle { fill: #17703a; }
.past { stroke: #8a8f98; stroke-width: 1; } .bad { fill: #b3202c; }
rect { fill: #fdfcfa; }
@media (prefers-color-scheme: dark) {
  text { fill: #a9adb5; } .head { fill: #e9e8e4; } path { stroke: #e9e8e4; }
  circle { fill: #5cc27f; } .bad { fill: #ff8a80; } rect { fill: #14161a; }
}"""


def over_commits(history: Sequence[Record]) -> str:
    """A cell's last loss and seconds over commits, and its newest curves over each other, as an SVG file of its own."""
    last = history[-1]
    panels = (
        ("last loss", [record.curve[-1].loss if record.curve else math.nan for record in history], 60.0),
        ("seconds", [record.seconds for record in history], 170.0),
    )
    drawn = [f'<text class="head" x="20" y="26">{escape(last.cell)} on {escape(last.hardware)}</text>']
    for name, values, top in panels:
        drawn += _panel(name, values, top, history)
    drawn.append(f'<text x="110" y="266">{escape(history[0].commit)} {escape(history[0].date)}</text>')
    drawn.append(f'<text x="620" y="266" text-anchor="end">{escape(last.commit)} {escape(last.date)}</text>')
    drawn += _curves(history[-CURVES:], 300.0)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 460" role="img" '
        f'aria-label="{escape(last.cell)} over commits"><style>{STYLE}</style><rect width="640" height="460"/>'
        + "".join(drawn)
        + "</svg>\n"
    )


def _panel(name: str, values: Sequence[float], top: float, history: Sequence[Record]) -> list[str]:
    """One figure over commits, 70 high; a measurement whose claims did not all hold is a red dot."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    places = [
        (
            110 + 510 * at / max(len(values) - 1, 1),
            top + 70 * (1 - (value - low) / ((high - low) or 1.0)),
            value,
            record,
        )
        for at, (value, record) in enumerate(zip(values, history, strict=True))
        if math.isfinite(value)
    ]
    drawn = [f'<text x="20" y="{top + 40:g}">{name}</text>']
    drawn += [
        f'<text x="100" y="{y:g}" text-anchor="end">{end:.4g}</text>' for y, end in ((top + 4, high), (top + 74, low))
    ]
    if len(places) > 1:
        drawn.append('<path d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in places) + '"/>')
    for x, y, value, record in places:
        bad = "" if record.proven else ' class="bad"'
        says = escape(f"{record.commit} {record.date}: {value:.6g}")
        drawn.append(f'<circle{bad} cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{says}</title></circle>')
    return drawn


def _curves(history: Sequence[Record], top: float) -> list[str]:
    """The curves of some measurements over each other, 120 high; the newest is dark, and seen where it leaves them."""
    points = [point for record in history for point in record.curve if math.isfinite(point.loss)]
    if not points:
        return []
    low, high = min(point.loss for point in points), max(point.loss for point in points)
    first, last = min(point.step for point in points), max(point.step for point in points)
    drawn = [
        f'<text x="20" y="{top + 64:g}">loss</text>',
        f'<text x="110" y="{top + 142:g}">step {first}, {len(history)} curves, the newest dark</text>',
        f'<text x="620" y="{top + 142:g}" text-anchor="end">{last}</text>',
    ]
    drawn += [
        f'<text x="100" y="{y:g}" text-anchor="end">{end:.4g}</text>' for y, end in ((top + 4, high), (top + 124, low))
    ]
    for record in history:
        name = "" if record is history[-1] else ' class="past"'
        says = escape(f"{record.commit} {record.date}")
        for part in stretches(record.curve):
            places = [
                (
                    110 + 510 * (point.step - first) / max(last - first, 1),
                    top + 120 * (1 - (point.loss - low) / ((high - low) or 1.0)),
                )
                for point in part
            ]
            line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            drawn.append(f'<path{name} d="M{line}"><title>{says}</title></path>')
    return drawn


def _loss(newest: Record, before: Record) -> Iterable[Drift]:
    far = distance(newest.curve, before.curve)
    if far is None:
        yield Drift(newest.cell, f"no step of its curve at {newest.commit} is one of that at {before.commit}")
    elif far[0] > newest.tolerance:
        yield Drift(
            newest.cell,
            f"loss at step {far[1]} differs by {far[0]:.2g} between {before.commit} and {newest.commit}; "
            f"{newest.tolerance:.2g} is allowed",
        )


def _phases(newest: Record, before: Sequence[Record], ratio: float) -> Iterable[Drift]:
    for name, seconds in ((phase.name, phase.seconds) for phase in newest.phases):
        usual = [phase.seconds for record in before for phase in record.phases if phase.name == name]
        if usual and seconds > ratio * median(usual) and seconds > median(usual) + SECONDS_LEAST:
            yield Drift(
                newest.cell,
                f"{name} took {seconds:.1f} s at {newest.commit}, {seconds / median(usual):.1f} times the usual "
                f"{median(usual):.1f} s",
            )


def _bytes(newest: Record, before: Sequence[Record]) -> Iterable[Drift]:
    """All phases together, since a checkpoint that is written beside training ends in one or in the next."""
    written, known = newest.bytes_written, [each.bytes_written for each in before if each.bytes_written is not None]
    if written is None or not known:
        return
    usual = median(known)
    if written > BYTES_RATIO * usual and written > usual + BYTES_LEAST:
        yield Drift(newest.cell, f"{written:,} bytes were written at {newest.commit}, usually {usual:,.0f}")


def _rows(records: Sequence[Record]) -> Iterable[Drift]:
    """Cells of one commit that differ in framework, cards or hardware alone, and whose losses differ all the same."""
    newest = {record.cell: record for record in records}
    rows: defaultdict[tuple[str, str, tuple[str, ...]], list[Record]] = defaultdict(list)
    for record in newest.values():
        rows[record.commit, record.recipe, record.features].append(record)
    for members in rows.values():
        apart = [
            (far[0], far[1], one, other)
            for one, other in combinations(members, 2)
            if (far := distance(one.curve, other.curve)) and far[0] > max(one.tolerance, other.tolerance)
        ]
        if apart:
            most, step, one, other = max(apart, key=lambda each: each[0])
            yield Drift(
                one.cell, f"loss at step {step} differs by {most:.2g} from that of {other.cell} at {one.commit}"
            )
