"""The command line gives, for each cell of the matrix, the very answer that the matrix has: a plan, or the reason."""

from collections.abc import Callable

import pytest

from tests.smoke.covering import depths
from tests.smoke.matrix import TABLES, Cell, Matrix
from training import cli
from training.errors import PlanRefused
from training.parallel import single
from training.plan import Plan

MATRIX = Matrix()


@pytest.fixture(scope="module")
def typed() -> Callable[[Cell], int]:
    """Types `plan` with a cell's words, on the machine that the cell stands for; the parser is made once for all."""
    made = cli.parser()

    def typed(cell: Cell) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "parser", lambda: made)
            # Of all the machines that cells stand for, this is one at most.
            patch.setattr(single, "machine", lambda: cell.machine)
            return cli.main(["plan", cell.recipe, *cell.words])

    return typed


@pytest.mark.parametrize("variant", TABLES.variants)
def test_every_refused_cell_is_refused_by_the_command_with_the_same_reason(
    typed: Callable[[Cell], int], capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    of_variant = {cell: refusal for cell, refusal in MATRIX.refused.items() if cell.variant == variant}
    # Reading a line takes milliseconds, and there are thousands: all with one feature, and of each reason the largest.
    by_reason = {refusal: cell for cell, refusal in of_variant.items()}
    refused = {cell: refusal for cell, refusal in of_variant.items() if len(cell.features) <= 1}
    refused |= {cell: refusal for refusal, cell in by_reason.items()}
    assert len(refused) > len(by_reason) > 2
    for cell, refusal in refused.items():
        assert typed(cell) == PlanRefused.exit_code, cell.name
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", f"error: {refusal.as_error()}\n"), cell.name


@pytest.mark.parametrize("variant", TABLES.variants)
def test_every_blocking_cell_is_planned_by_the_command_as_the_matrix_plans_it(
    typed: Callable[[Cell], int], capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    for cell, depth in depths(MATRIX).items():
        if (cell.variant, depth) == (variant, "blocking"):
            assert typed(cell) == 0, cell.name
            planned = cell.answer()
            assert isinstance(planned, Plan)
            assert capsys.readouterr().out == planned.describe() + "\n", cell.name
