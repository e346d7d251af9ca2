import json
from pathlib import Path

import pytest

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.checkouts import git
from tests.unit.tools.ci.runs import Smoke, fail
from tools.ci.history import MATRIX, main
from tools.ci.store import read_store

CELLS = [smoke_files.cell("cpu", "fsdp", cards, ("lora",)) for cards in (1, 2)]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean checkout in which a run has left two proven cells."""
    root = tmp_path / "workspace"
    (root / ".plumbline").mkdir(parents=True)
    (root / ".gitignore").write_text("/.plumbline/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".gitignore")
    git(root, "commit", "--quiet", "-m", "A subject")
    ran(root)
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(root))
    monkeypatch.setenv("PLUMBLINE_CACHE", str(tmp_path / "cache"))
    return root


def ran(root: Path, seed: int = 7, shift: float = 0.0) -> None:
    """A run of both cells."""
    run = Smoke(root / ".plumbline", *CELLS)
    for cell in CELLS:
        run.cell(cell, smoke_files.verdict(cell, seed=seed, curve=smoke_files.curve(shift=shift)))
    run.write()


def test_a_run_is_appended_once_and_compared(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = workspace.parent / "cache/history.jsonl"
    assert main(["append"]) == 0
    assert capsys.readouterr().out.startswith(f"2 measurements added to {store}; 0 were there already")
    assert main(["append"]) == 0
    assert capsys.readouterr().out.startswith(f"0 measurements added to {store}; 2 were there already")
    ran(workspace, seed=8)
    assert main(["append"]) == 0
    capsys.readouterr()
    assert main(["compare"]) == 0
    assert capsys.readouterr().out == (
        f"4 measurements of 2 cells, nothing drifted; plots in {workspace / '.plumbline/history'}\n"
    )
    assert len(list((workspace / ".plumbline/history").glob("cpu_sft_lora_fsdp_x*.svg"))) == 2
    assert len({record.commit for record in read_store(store)[0]}) == 1


def test_drift_is_said_and_fails(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["append", "--store=h.jsonl"])
    ran(workspace, shift=1e-3)
    main(["append", "--store=h.jsonl"])
    capsys.readouterr()
    assert main(["compare", "--store=h.jsonl", "--out=plots"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["cpu/sft_lora_fsdp_x1", "cpu/sft_lora_fsdp_x2"]
    assert lines[2].startswith("4 measurements of 2 cells, 2 drifts; plots in ")


def test_a_bad_line_is_said_and_fails(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["append", "--store=h.jsonl"])
    with (workspace / "h.jsonl").open("a") as store:
        store.write("{\n")
    assert main(["compare", "--store=h.jsonl"]) == 1
    assert f"{workspace / 'h.jsonl'}:3: is no record" in capsys.readouterr().err
    ran(workspace, seed=8)
    assert main(["append", "--store=h.jsonl"]) == 2
    assert "hint: repair or delete these lines" in capsys.readouterr().err


def test_a_verdict_whose_test_failed_is_not_entered(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Smoke(workspace / ".plumbline", *CELLS)
    for cell in CELLS:
        left = {"verdict.json": smoke_files.verdict(cell)}
        run.test(cell["target"], {"test_cell": fail("a process is left")}, "FAILED", left=left)
    run.write(code=3)
    assert main(["prove"]) == 2
    assert "none of 2 verdicts is proven" in capsys.readouterr().err
    assert main(["append", "--store=h.jsonl"]) == 0
    assert [record.proven for record in read_store(workspace / "h.jsonl")[0]] == [False, False]


def test_what_other_machines_measured_is_added(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["append", "--store=one.jsonl"])
    ran(workspace, seed=8)
    main(["append", "--store=two.jsonl"])
    capsys.readouterr()
    assert main(["append", "--store=all.jsonl", "--from", "one.jsonl", "two.jsonl", "one.jsonl"]) == 0
    assert capsys.readouterr().out.startswith("4 measurements added")
    assert main(["append", "--store=all.jsonl", "--from", "one.jsonl", "gone.jsonl"]) == 2
    assert "gone.jsonl: is not there" in capsys.readouterr().err


def test_what_pytest_alone_left_is_proven_too(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = smoke_files.cell("nvidia", "single", 1, ())
    folder = workspace / ".plumbline/left/one"
    folder.mkdir(parents=True)
    hardware = {"accelerators": [{"name": "H100"}]}
    (folder / "verdict.json").write_text(smoke_files.verdict(cell, hardware=hardware))
    assert main(["prove", "--verdicts=.plumbline/left"]) == 2
    assert "matrix.json: is not there, so nothing says which claims a verdict must make" in capsys.readouterr().err
    matrix = workspace / MATRIX
    matrix.parent.mkdir(parents=True)
    matrix.write_text(json.dumps({"schema": 1, "cells": [cell]}))
    (workspace / ".gitignore").write_text("/.plumbline/\n/bazel-bin/\n")
    git(workspace, "commit", "--quiet", "-am", "Another subject")
    claims = [smoke_files.claim(name, "so", 0, 0) for name in smoke_files.CLAIMS]
    (folder / "verdict.json").write_text(smoke_files.verdict(cell, hardware=hardware, claims=claims[:1]))
    assert main(["prove", "--verdicts=.plumbline/left"]) == 2
    assert "it makes 1 of 7 claims" in capsys.readouterr().err
    (folder / "verdict.json").write_text(smoke_files.verdict(cell, hardware=hardware, claims=claims))
    assert main(["prove", "--verdicts=.plumbline/left"]) == 0
    (path,) = (workspace / "docs/proofs").glob("1x-h100-*.json")
    assert capsys.readouterr().out == f"{path}\n"
    assert list(json.loads(path.read_text())["cells"]) == ["nvidia/sft_single_x1.gpu-nvidia"]
    assert main(["prove", "--verdicts=.plumbline/left"]) == 0
    (workspace / "changed").write_text("")
    assert main(["prove", "--verdicts=.plumbline/left"]) == 2
    assert "expected a clean checkout" in capsys.readouterr().err


def test_verdicts_of_another_tier_are_appended_by_the_name_of_their_files(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace / ".plumbline/left/one"
    folder.mkdir(parents=True)
    (folder / "benchmark.json").write_text(smoke_files.verdict(smoke_files.cell("cpu", "single", 1, ())))
    assert main(["append", "--store=h.jsonl", "--verdicts=.plumbline/left"]) == 2
    assert main(["append", "--store=h.jsonl", "--verdicts=.plumbline/left", "--file=benchmark.json"]) == 0
    assert [record.cell for record in read_store(workspace / "h.jsonl")[0]] == ["cpu/sft_single_x1"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["append", "--events=none.json"], "there is no verdict. hint: ./bazelw test //tests/smoke/... --config=ci"),
        (["prove", "--verdicts=none"], "there is no verdict"),
        (["compare", "--store=none"], "there is no history yet. hint: ./bazelw run //tools/ci:history -- append"),
    ],
)
def test_what_is_not_there_is_said(
    workspace: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
