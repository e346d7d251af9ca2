import shutil
from pathlib import Path

import pytest

from tools.lint import fix
from tools.lint.checkers import RUFF_CHECK, RUFF_FORMAT, expect_clean, run_checker

CLEAN = '"""A module."""\n\nvalue = 1\n'
SETTINGS = '[tool.ruff]\nlint.select = ["D", "F", "I"]\nlint.pydocstyle.convention = "google"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "tools").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(SETTINGS)
    (folder / "tools/a.py").write_text(CLEAN)
    return folder


def test_ruff_is_green_on_clean_files(folder: Path) -> None:
    expect_clean(run_checker("ruff", *RUFF_CHECK, folder=folder))
    expect_clean(run_checker("ruff", *RUFF_FORMAT, folder=folder))


def test_ruff_turns_red_on_an_unused_import(folder: Path) -> None:
    (folder / "tools/a.py").write_text(f"{CLEAN}import json\n")
    with pytest.raises(AssertionError, match=r"(?s)a\.py:4:8: F401.*ruff check.*exit 1\. hint: \./bazelw run"):
        expect_clean(run_checker("ruff", *RUFF_CHECK, folder=folder))


def test_ruff_turns_red_on_another_format(folder: Path) -> None:
    (folder / "tools/a.py").write_text(CLEAN.replace(" = ", "="))
    with pytest.raises(AssertionError, match=r"tools/a\.py:3:\d+: unformatted"):
        expect_clean(run_checker("ruff", *RUFF_FORMAT, folder=folder))


def test_a_checker_that_cannot_run_is_red(folder: Path) -> None:
    with pytest.raises(AssertionError, match="No module named no_such_checker"):
        expect_clean(run_checker("no_such_checker", folder=folder))


def test_a_module_in_the_tree_never_stands_in_for_a_wheel(folder: Path) -> None:
    (folder / "ruff.py").write_text("raise SystemExit(0)\n")
    assert run_checker("ruff", *RUFF_CHECK, folder=folder).returncode == 1


def test_fix_repairs_and_says_what(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tools/a.py").write_text(f"{CLEAN}import json\nb=2\n")
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(folder))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert fix.main() == 0
    assert (folder / "tools/a.py").read_text() == f"{CLEAN}b = 2\n"
    said = capsys.readouterr().out
    assert "no buildifier on PATH" in said
    assert said.endswith("changed tools/a.py\n")


def test_fix_is_red_while_something_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tools/a.py").write_text("value = 1\n")
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(folder))
    assert fix.main() == 1
    said = capsys.readouterr().out
    assert "D100" in said
    assert said.endswith("changed nothing\n")


def test_fix_calls_buildifier_where_it_is_installed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "buildifier"
    program.write_text('#!/bin/sh\nfor last; do :; done\necho "# fixed" >> "$last"\n')
    program.chmod(0o755)
    (folder / "tools/BUILD.bazel").write_text("")
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(folder))
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    assert fix.main() == 0
    assert (folder / "tools/BUILD.bazel").read_text() == "# fixed\n"
    assert capsys.readouterr().out.endswith("changed tools/BUILD.bazel\n")


def test_fix_without_a_workspace_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILD_WORKSPACE_DIRECTORY", raising=False)
    with pytest.raises(SystemExit, match=r"\./bazelw run //tools/lint:fix"):
        fix.main()
