"""What the command line says to cells of the matrix, each on the machine that it stands for."""

import io
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from unittest.mock import patch

from tests.smoke.matrix import Cell
from training import cli
from training.errors import PlanRefused
from training.parallel import single
from training.plan import Refusal


def answers(cells: Iterable[Cell]) -> Iterator[tuple[int, str, str]]:
    """Exit code and both outputs of `plan` with each cell's words, in this process; the parser is made once for all."""
    made = cli.parser()
    for cell in cells:
        out, err, here = io.StringIO(), io.StringIO(), cell.machine
        # Of all the machines that cells stand for, this is one at most.
        machine = patch.object(single, "machine", partial(replace, here))
        with patch.object(cli, "parser", lambda *_: made), machine, redirect_stdout(out), redirect_stderr(err):
            code = cli.main(["plan", cell.recipe, *cell.words])
        yield code, out.getvalue(), err.getvalue()


def differing(cells: Iterable[Cell]) -> list[str]:
    """The names of cells to which the command line does not say what the matrix does: a plan, or the very reason."""
    listed = list(cells)
    found = []
    for cell, said in zip(listed, answers(listed), strict=True):
        answer = cell.answer()
        if isinstance(answer, Refusal):
            wanted = (PlanRefused.exit_code, "", f"error: {answer.as_error()}\n")
        else:
            # Of a cell's model and data there are only the names here.
            unseen = f"first       not shown, since there is no {answer.model_path} here"
            wanted = (0, f"{answer.describe()}\n{unseen}\n", "")
        if said != wanted:
            found.append(f"{cell.name}: {said}; expected {wanted}")
    return found
