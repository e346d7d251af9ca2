import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.runs import PASS, Run, Smoke, fail
from tools.ci import count
from tools.ci.cells import parse_verdict
from tools.ci.checkout import Commit
from tools.ci.proofs import prove
from tools.ci.report import main
from tools.ci.store import append, record_of


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".plumbline").mkdir()
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("PLUMBLINE_CACHE", str(tmp_path / "cache"))
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


def test_the_page_knows_the_history_and_what_was_proven_elsewhere(workspace: Path) -> None:
    here = smoke_files.cell("cpu", "single", 1, ())
    there = smoke_files.cell("nvidia", "single", 1, ())
    cpu = parse_verdict(smoke_files.verdict(here, seed=1), "v")
    gpu = parse_verdict(smoke_files.verdict(there, hardware={"accelerators": [{"name": "H100"}]}), "v")
    append(workspace / "h.jsonl", [record_of(cpu, "aaaa", "2026-11-24", "")])
    prove(workspace / "docs/proofs", [(gpu, "")], Commit("0123456789abcdef", "", "2026-11-23", changed=False))
    run = Smoke(workspace / ".plumbline", here, there)
    run.cell(here)
    run.skipped(there["target"], "skipped", tags=("gpu-nvidia",))
    run.write()
    assert main(["--store=h.jsonl"]) == 0
    html = (workspace / ".plumbline/report/index.html").read_text()
    assert "2 measurements on 2x-example-9000-" in html
    assert "sft_single_x1.gpu-nvidia: proven elsewhere: proven on 1x-h100-" in html
    assert "at 0123456789, 2026-11-23" in html
    assert "1 cell on 1x-h100-" in html


def test_a_history_or_a_ledger_that_cannot_be_read_is_said_on_the_page_and_hides_nothing(workspace: Path) -> None:
    run = Run(workspace / ".plumbline")
    run.test("//tests/unit:a", {"test_one": PASS})
    run.write()
    (workspace / "h.jsonl").write_text("{\n")
    (workspace / "docs/proofs").mkdir(parents=True)
    (workspace / "docs/proofs/a.json").write_text("{")
    assert main(["--store=h.jsonl"]) == 0
    html = (workspace / ".plumbline/report/index.html").read_text()
    assert "h.jsonl:1: is no record" in html
    assert "a.json: is no ledger" in html
