"""The bugs that a guard must see, handed over by the macro planted_bugs as JSON, and the guard where there is none."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.negative.planting import Bug, Guard, Warm, caught, green

LABEL: str = os.environ["PLUMBLINE_GUARD"]
ROWS: list[dict[str, Any]] = json.loads(os.environ["PLUMBLINE_BUGS"])


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


def test_the_guard_is_green_where_nothing_is_planted(warm: Warm, tmp_path: Path) -> None:
    """Red here would be no news of a bug."""
    green(Guard(LABEL, tuple(dict.fromkeys(row["test"] for row in ROWS))), tmp_path, warm)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_the_guard_turns_red(warm: Warm, tmp_path: Path, row: dict[str, Any]) -> None:
    bug = {name: value for name, value in row.items() if name not in ("guard", "test")}
    caught(Bug(**bug, guard=Guard(LABEL, (row["test"],))), tmp_path, warm)
