"""The command line gives the very answer that the matrix has, a plan or the reason, for some cells.

Those with at most one feature, of each reason the largest, and what blocks a change; `every_answer_test.py` asks all.
"""

import pytest

from tests.smoke.asking import differing
from tests.smoke.covering import depths
from tests.smoke.matrix import TABLES, Cell, Matrix

MATRIX = Matrix()


DEPTHS = depths(MATRIX)


def refused(variant: str) -> set[Cell]:
    of_variant = {cell: refusal for cell, refusal in MATRIX.refused.items() if cell.variant == variant}
    largest = {refusal: cell for cell, refusal in of_variant.items()}
    return {cell for cell in of_variant if len(cell.features) <= 1} | set(largest.values())


def blocking(variant: str) -> set[Cell]:
    return {cell for cell, depth in DEPTHS.items() if (cell.variant, depth) == (variant, "blocking")}


@pytest.mark.parametrize("variant", TABLES.variants)
def test_refused_cells_are_refused_by_the_command_with_the_same_reason(variant: str) -> None:
    assert len({MATRIX.refused[cell] for cell in refused(variant)}) > 2
    assert differing(refused(variant)) == []


@pytest.mark.parametrize("variant", TABLES.variants)
def test_blocking_cells_are_planned_by_the_command_as_the_matrix_plans_them(variant: str) -> None:
    assert differing(blocking(variant)) == []


def test_as_many_cells_are_asked_for_as_the_documents_say() -> None:
    """Some 2,100, in docs/testing.md."""
    assert 2_050 < sum(len(refused(each)) + len(blocking(each)) for each in TABLES.variants) < 2_150


def test_an_answer_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, words = next(iter(MATRIX.refused)), MATRIX.allowed[0].words
    monkeypatch.setattr(Cell, "words", words)
    (said,) = differing([cell])
    assert said.startswith(f"{cell.name}: (0, ")
