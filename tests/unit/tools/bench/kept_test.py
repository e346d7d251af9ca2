"""What was measured stays, line by line, and what stays can be read again."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tools.bench.kept import Kept, Row, append, newest, of_now, parts_table, ratio, read, said, table
from tools.bench.rounds import Spread

ONE = Spread(1.0, 1.0, 1.0)
ROW = Row(
    case="chat",
    contender="ours",
    unit="tokens",
    speed=Spread(900.0, 1000.0, 1100.0),
    speed_ratio=Spread(1.0, 2.0, 3.0),
    bytes=Spread(1e6, 2e6, 3e6),
    memory_ratio=Spread(0.4, 0.5, 0.6),
    also={"drawn": 12.0, "part_data": 25.0, "part_forward": 75.0},
    target="speed below 2.50",
    also_ratio={"drawn": Spread(1.5, 1.6, 1.7)},
    wanted={"speed": 2.5},
)
KEPT = Kept("chat", "a run", "2026-01-01T00:00Z", "abc", 3, {"cores": 2}, {"torch": "2"}, [ROW], load=1.5)


def test_a_line_is_added_and_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep/history.jsonl"
    assert read(path) == []
    other = replace(KEPT, when="2026-01-02T00:00Z", goes={"ours": [{"amount": 1}]})
    for each in (KEPT, other):
        append(path, each)
    assert read(path) == [KEPT, other]


def test_the_newest_of_a_case_is_its_last_line_and_cases_have_their_order() -> None:
    later, read_case = replace(KEPT, commit="def"), replace(KEPT, case="read")
    assert newest([KEPT, read_case, later], ["read", "chat", "draw"]) == [read_case, later]


def test_a_table_has_ratios_with_their_spread_and_marks_what_is_missed() -> None:
    *_, missed, met = table([ROW, replace(ROW, target="met", also={}, speed_ratio=ONE)]).splitlines()
    assert missed == (
        "| chat | ours | 1,000 tokens | 2.00 (1.00 to 3.00) | 2 | 0.50 | drawn 12 (× 1.60 (1.50 to 1.70)) "
        "| **speed below 2.50** |"
    )
    assert met == "| chat | ours | 1,000 tokens | 1.00 | 2 | 0.50 |  | met |"


def test_parts_have_a_table_of_their_own() -> None:
    assert parts_table([replace(ROW, also={})]) == ""
    head, _, line = parts_table([replace(ROW, also={}), ROW]).splitlines()
    assert head.endswith("| data | forward |")
    assert line == "| ours | 25.0 | 75.0 |"


def test_speeds_have_three_digits_or_more() -> None:
    assert [said(each) for each in (12345.6, 100.0, 2.345)] == ["12,346", "100", "2.35"]
    assert ratio(ONE) == "1.00"


def test_a_line_says_the_commit_and_whether_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "--short", "HEAD")
    assert of_now(tmp_path)["commit"] == commit
    (tmp_path / "file").write_text("two")
    assert of_now(tmp_path)["commit"] == f"{commit}+"
