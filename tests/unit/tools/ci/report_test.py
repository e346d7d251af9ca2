import json
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.runs import PASS, Run, Smoke, fail
from tools.ci import count
from tools.ci.report import commit_of, main


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".plumbline").mkdir()
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(tmp_path))
    return tmp_path


def test_a_green_run_leaves_four_files_and_exits_with_zero(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(workspace / ".plumbline")
    run.test("//tests/unit:a", {"test_one": PASS})
    run.write()
    assert main([]) == 0
    out = workspace / ".plumbline/report"
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "junit.xml", "report.json", "summary.md"]
    assert capsys.readouterr().out == f"Nothing failed. {out / 'index.html'}\n"
    assert json.loads((out / "report.json").read_text())["num_passed"] == 1
    assert ElementTree.parse(out / "junit.xml").getroot().get("tests") == "1"


def test_the_exit_code_is_the_counts(workspace: Path) -> None:
    """Green, red by a test, red by a cell that is missing, red by nothing at all."""
    cells = [smoke_files.cell("cpu", "fsdp", cards, ()) for cards in (1, 2)]
    for name, codes in (("green", 0), ("red", 1), ("missing", 1), ("empty", 1)):
        folder = workspace / name
        folder.mkdir()
        run = Smoke(folder, *cells)
        if name != "empty":
            run.cell(cells[0])
        if name == "green":
            run.cell(cells[1])
        elif name == "red":
            run.test(cells[1]["target"], {"test_cell": fail("no")}, "FAILED")
        elif name == "empty":
            run.events = run.events[:1]
        events = run.write()
        assert main([f"--events={events}", f"--out={folder / 'report'}"]) == codes, name
        assert count.main([str(events)]) == codes, name


def test_an_expected_tier_and_a_matrix_can_be_given(workspace: Path, tmp_path: Path) -> None:
    run = Run(workspace / ".plumbline")
    run.asked("//...")
    run.test("//tests/unit:a", {"test_one": PASS})
    run.write()
    assert main(["--expect=unit"]) == 0
    assert main(["--expect=lint"]) == 1
    cell = smoke_files.cell("cpu", "single", 1, ())
    (tmp_path / "matrix.json").write_text(json.dumps({"schema": 1, "cells": [cell]}))
    assert main(["--matrix=matrix.json"]) == 1
    made = json.loads((workspace / ".plumbline/report/report.json").read_text())
    assert made["headline"] == "1 cell is missing."


def test_without_a_run_the_command_says_how_to_make_one(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.endswith("there is no run to report on. hint: ./bazelw test //... --config=ci\n")


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_the_commit_is_named_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == {}
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--allow-empty", "--quiet", "-m", "A subject\n\nand a body")
    found = commit_of(tmp_path)
    assert (len(found["commit"]), found["subject"], "files" in found) == (12, "A subject", False)
    (tmp_path / "new").write_text("")
    assert commit_of(tmp_path)["files"] == "changed since"
