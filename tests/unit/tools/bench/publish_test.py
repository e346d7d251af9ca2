"""The documents say what was measured, and nothing that was not."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools.bench.kept import PUBLISHED, Kept, Row, read
from tools.bench.publish import BEGIN, END, between, documents, ratios_of
from tools.bench.rounds import Spread
from tools.bench.train import CASES

ONE = Spread(1.0, 1.0, 1.0)
FIRST = Row("loss", "plain", "tokens", ONE, ONE, ONE, ONE, {}, "")
SECOND = replace(
    FIRST,
    contender="ours",
    speed_ratio=Spread(1.0, 1.5, 2.0),
    memory_ratio=Spread(0.1, 0.2, 0.3),
    also_ratio={"tokens_drawn": Spread(2.0, 2.5, 3.0)},
    target="met",
    wanted={"speed": 1.25, "memory": 0.5},
)
KEPT = Kept("loss", "a loss", "2026", "abc", 3, {}, {}, [FIRST, SECOND])


def test_the_readme_has_each_case_beside_its_first_contender() -> None:
    assert ratios_of([KEPT]).splitlines()[2:] == [
        "| a loss | plain | 1.50 (1.00 to 2.00); memory 0.20; tokens drawn 2.50 (2.00 to 3.00) "
        "| 1.25, memory 0.5: met |"
    ]
    by_itself = replace(
        KEPT, rows=[FIRST, replace(SECOND, also={"percent_full": 99.95}, wanted={"percent_full": 99.0})]
    )
    assert "; percent full 99.95; " in ratios_of([by_itself])
    missed = replace(KEPT, rows=[FIRST, replace(SECOND, target="speed below 1.25", wanted={"speed": 1.25})])
    assert ratios_of([missed]).endswith("| 1.25: **missed** |")
    without = replace(KEPT, rows=[FIRST, replace(SECOND, target="", wanted={}, also_ratio={})])
    assert ratios_of([without]).endswith("| 1.50 (1.00 to 2.00) |  |")


def test_what_is_between_the_marks_is_replaced() -> None:
    begin, end = BEGIN.format("It"), END.format("It")
    document = f"before\n{begin}\nold\n{end}\nafter\n"
    assert between(document, "It", "new") == f"before\n{begin}\nnew\n{end}\nafter\n"


@pytest.mark.parametrize("document", ["", BEGIN.format("It"), 2 * (BEGIN.format("It") + END.format("It"))])
def test_a_mark_that_is_not_there_once_is_named(document: str) -> None:
    with pytest.raises(ValueError, match=r"got [02] times '<!-- .*; expected it once"):
        between(document, "It", "new")


def test_the_documents_are_made_of_what_is_published() -> None:
    for path, text in documents(Path()).items():
        hint = "hint: ./bazelw run //tools/bench:publish"
        assert path.read_text(encoding="utf-8") == text, f"{path} says something else than {PUBLISHED}. {hint}"


def test_what_is_published_is_of_cases_that_there_are_and_has_their_contenders() -> None:
    for kept in read(PUBLISHED):
        assert kept.case in CASES
        assert {row.contender for row in kept.rows} <= set(CASES[kept.case].contenders), kept.case
