"""The command line gives the very answer that the matrix has, for every cell: a plan, or the reason.

Asking takes some ten milliseconds, and there are tens of thousands: this is for a night, and for several machines.
"""

import pytest

from tests.smoke.asking import differing
from tests.smoke.covering import depths
from tests.smoke.matrix import Matrix

PARTS = 32
"""Tests, so that shards have something to share."""

MATRIX = Matrix()
CELLS = [*depths(MATRIX), *MATRIX.refused]


@pytest.mark.parametrize("part", range(PARTS))
def test_every_cell_is_answered_by_the_command_as_by_the_matrix(part: int) -> None:
    asked = CELLS[part::PARTS]
    assert len(asked) > 100
    assert differing(asked) == []
