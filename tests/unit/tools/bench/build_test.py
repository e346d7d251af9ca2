"""What is asked of Bazel is judged by what it did, before any time counts."""

import json
from dataclasses import replace

import pytest

from tools.bench.build import Row, matrix_of, table, were_found, wrong

ROWS = [
    Row("cold", 100.0, 40, 0),
    Row("no change", 1.0, 0, 40, seconds_max=1.5),
    Row("leaf", 9.0, 3, 37),
    Row("lock", 3.0, 0, 40),
    Row("another", 16.0, 0, 40, seconds_max=15.0),
    Row("matrix", 25.0, heap_bytes=300_000_000),
]


def test_a_build_that_did_what_it_should_is_not_wrong() -> None:
    assert wrong(ROWS) == []


@pytest.mark.parametrize(
    ("number", "num_run", "says"),
    [
        (0, 0, "cold: no test ran"),
        (1, 2, "no change: 2 tests ran; expected none"),
        (2, 0, "leaf: 0 of 40 tests ran; expected some, not all"),
        (2, 40, "leaf: 40 of 40 tests ran; expected some, not all"),
        (3, 1, "lock: 1 tests ran; expected none"),
        (4, 40, "another: 40 tests ran; expected none"),
    ],
)
def test_what_ran_without_need_or_did_not_run_is_named(number: int, num_run: int, says: str) -> None:
    rows = [replace(row, num_run=num_run) if place == number else row for place, row in enumerate(ROWS)]
    assert wrong(rows) == [says]


def test_table_has_a_line_for_each_row_and_names_a_missed_target() -> None:
    lines = table(ROWS).splitlines()
    assert lines[3] == "| no change | 1.0 | 0 | 40 |  | 1.5 s: met |"
    assert lines[6] == "| another | 16.0 | 0 | 40 |  | 15 s: **missed** |"
    assert lines[7] == "| matrix | 25.0 |  |  | 300 MB |  |"


def test_results_are_told_apart_by_where_they_came_from() -> None:
    told = [{}, {"cachedLocally": True}, {"executionInfo": {"cachedRemotely": True}}, {"executionInfo": {}}]
    events = [{"started": {}}, *({"testResult": {"status": "PASSED", **each}} for each in told)]
    assert list(were_found("\n".join(map(json.dumps, events)))) == [False, True, True, False]


def test_a_matrix_has_as_many_cells_as_it_is_asked_for() -> None:
    scope: dict[str, list[tuple[list[str], str, str]]] = {}
    exec(matrix_of(250), scope)
    ((accelerators, depth, names),) = scope["CELLS"]
    assert (accelerators, depth) == (["cpu"], "blocking")
    assert len(set(names.split())) == 250
    assert all(name.rpartition("_x")[2] == "1" for name in names.split())
