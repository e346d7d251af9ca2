import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.tools.ci import smoke_files
from tools.ci.cells import parse_verdict
from tools.ci.drift import CURVES, by_cell, drifts, over_commits, past_of
from tools.ci.store import Record, Spent, record_of

LORA = smoke_files.cell("cpu", "fsdp", 2, ("lora",))
OTHER = smoke_files.cell("cpu", "ddp", 2, ("lora",))


def measured(commit: str, shift: float = 0.0, cell: dict[str, Any] = LORA, **changes: Any) -> Record:
    raw = smoke_files.verdict(cell, curve=smoke_files.curve(shift=shift), **changes)
    return record_of(parse_verdict(raw, "v"), commit, "2026-11-25", "")


def timed(commit: str, seconds: float) -> Record:
    return replace(measured(commit), phases=(Spent("steps", seconds, 1_000), Spent("export", 0.1, 600_000)))


def said(*records: Record, ratio: float = 1.5) -> list[str]:
    return [str(drift) for drift in drifts(records, ratio)]


def test_equal_curves_are_no_drift() -> None:
    assert said(measured("a"), measured("b", shift=1e-7), measured("c")) == []


def test_a_loss_beyond_the_tolerance_is_drift_with_both_commits() -> None:
    (line,) = said(measured("a"), measured("b", shift=1e-3))
    assert line.startswith("cpu/sft_lora_fsdp_x2: loss at step 12 differs by 0.0")
    assert line.endswith("between a and b; 2e-06 is allowed")


def test_a_failed_measurement_is_no_measure_for_the_next() -> None:
    failed = replace(measured("b", shift=1e-3), proven=False)
    assert said(measured("a"), failed, measured("c")) == []


def test_curves_without_a_common_step_are_drift() -> None:
    other = replace(measured("b"), curve=tuple(replace(point, step=point.step + 50) for point in measured("b").curve))
    assert said(measured("a"), other) == ["cpu/sft_lora_fsdp_x2: no step of its curve at b is one of that at a"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((4.0, 4.2, 3.8, 4.1), []),
        ((4.0, 4.2, 3.8, 9.0), ["steps took 9.0 s at c3, 2.2 times the usual 4.0 s"]),
        ((0.1, 0.1, 0.1, 0.9), []),
        ((9.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 9.0), ["steps took 9.0 s at c7, 2.2 times the usual 4.0 s"]),
        ((4.0,), []),
    ],
)
def test_a_phase_is_slower_by_a_ratio_and_a_second(seconds: tuple[float, ...], expected: list[str]) -> None:
    records = [timed(f"c{at}", each) for at, each in enumerate(seconds)]
    assert [line.partition(": ")[2] for line in said(*records)] == expected
    assert said(*records, ratio=3.0) == []


def wrote(commit: str, number: int | None) -> Record:
    return replace(measured(commit), phases=(Spent("export", 0.1, number), Spent("steps", 0.1, 1_000)))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((600_000, 610_000, 600_000), []),
        ((600_000, 610_000, 600_000, 1_300_000), ["1,301,000 bytes were written at c3, usually 601,000"]),
        ((1_000, 1_000, 90_000), []),
        ((None, None, 9_000_000), []),
        ((600_000, None), []),
    ],
)
def test_more_bytes_by_half_are_drift(numbers: tuple[int | None, ...], expected: list[str]) -> None:
    records = [wrote(f"c{at}", each) for at, each in enumerate(numbers)]
    assert [line.partition(": ")[2] for line in said(*records)] == expected


def test_other_hardware_is_no_measure_for_times() -> None:
    assert said(timed("a", 4.0), replace(timed("b", 9.0), hardware="else")) == []


def test_cells_of_a_row_are_held_against_each_other_at_one_commit() -> None:
    (line,) = said(measured("a"), measured("a", shift=1e-3, cell=OTHER))
    assert line.startswith("cpu/sft_lora_")
    assert "from that of cpu/sft_lora_" in line
    assert line.endswith("at a")
    plain = smoke_files.cell("cpu", "ddp", 2, ())
    assert said(measured("a"), measured("a", shift=1e-3, cell=plain)) == []
    assert said(measured("a"), measured("b", shift=1e-3, cell=OTHER)) == []


def test_the_past_of_a_cell_is_a_plot_with_its_drifts_marked() -> None:
    past = past_of([measured("aaaa"), measured("bbbb", shift=1e-3), measured("cccc", shift=1e-3)])
    assert past is not None
    assert (past.first, past.last) == ("aaaa", "cccc")
    assert past.says.endswith("A line through it marks a loss that left its curve: bbbb.")
    assert len(ElementTree.fromstring(past.svg).findall("path[@class='lost']")) == 1
    assert past_of([]) is None
    assert [curve[-1].loss for curve in past.curves] == [measured("aaaa").curve[-1].loss, past.curves[1][-1].loss]
    assert len(past.curves) == 2


def test_a_plot_over_commits_lays_the_newest_curves_over_each_other() -> None:
    records = [measured(f"c{at}", shift=at / 1000) for at in range(CURVES + 3)]
    space = "{http://www.w3.org/2000/svg}"
    drawn = [
        (path.get("class"), path[0].text)
        for path in ElementTree.fromstring(over_commits(records)).iter(f"{space}path")
        if len(path)
    ]
    commits = [f"c{at} 2026-11-25" for at in range(3, CURVES + 3)]
    assert drawn == [*(("past", each) for each in commits[:-1]), (None, commits[-1])]
    assert past_of(records).curves == tuple(record.curve for record in records[3:-1])  # type: ignore[union-attr] # there is one


def test_a_plot_over_commits_has_a_dot_for_each_measurement() -> None:
    records = [measured("aaaa"), replace(measured("b<b"), proven=False), measured("cccc")]
    ((_, history),) = by_cell(records).items()
    root = ElementTree.fromstring(over_commits(history))
    space = "{http://www.w3.org/2000/svg}"
    dots = root.findall(f"{space}circle")
    assert len(dots) == 6
    assert [dot.get("class") for dot in dots] == [None, "bad", None] * 2
    assert dots[1].find(f"{space}title").text.startswith("b<b 2026-11-25: ")  # type: ignore[union-attr] # it has one
    assert root.get("aria-label") == "cpu/sft_lora_fsdp_x2 over commits"
