import subprocess
import tarfile
from pathlib import Path

import pytest

from tools.lint.tree import Finding, Tree, expect_none, open_tree, tree_at


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")


def test_bytecode_is_no_part_of_the_tree(tmp_path: Path) -> None:
    write(tmp_path, "tools/a.py", "tools/__pycache__/a.pyc", "b/BUILD.bazel")
    assert tree_at(tmp_path).files == ("b/BUILD.bazel", "tools/a.py")


def test_a_checkout_is_what_git_does_not_ignore(tmp_path: Path) -> None:
    write(tmp_path, "tools/a.py", "made/b.py")
    (tmp_path / ".gitignore").write_text("/made/\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert tree_at(tmp_path).files == (".gitignore", "tools/a.py")


def test_under_bazel_the_tree_is_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "made", "training/a.py", "tests/b.py", "tools/c.py", ".ci/run")
    runfiles = tmp_path / "runfiles" / "_main"
    runfiles.mkdir(parents=True)
    (tmp_path / "runfiles" / "other").mkdir()
    with tarfile.open(tmp_path / "runfiles/other/tree.tar", "w") as archive:
        archive.add(tmp_path / "made", arcname=".")
    monkeypatch.setenv("PLUMBLINE_TREE", "../other/tree.tar")
    monkeypatch.setenv("TEST_SRCDIR", str(tmp_path / "runfiles"))
    monkeypatch.setenv("TEST_WORKSPACE", "_main")
    monkeypatch.setenv("TEST_TMPDIR", str(tmp_path / "scratch"))
    tree = open_tree()
    assert tree.root == tmp_path / "scratch/tree"
    assert tree.files == (".ci/run", "tests/b.py", "tools/c.py", "training/a.py")


def test_an_empty_tree_is_refused_rather_than_found_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "tree.tar", "w"):
        pass
    monkeypatch.setenv("PLUMBLINE_TREE", "tree.tar")
    monkeypatch.setenv("TEST_SRCDIR", str(tmp_path))
    monkeypatch.setenv("TEST_WORKSPACE", ".")
    monkeypatch.setenv("TEST_TMPDIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="no Python files in tests, tools, training"):
        open_tree()


def test_every_finding_is_in_the_failure() -> None:
    found = [Finding("b.py", 2, "is long", "shorten it"), Finding("a.py", 1, "is wide", "narrow it")]
    with pytest.raises(AssertionError) as caught:
        expect_none(found)
    assert str(caught.value).splitlines()[1:] == [
        "a.py:1: is wide. hint: narrow it",
        "b.py:2: is long. hint: shorten it",
    ]


def test_nothing_found_is_a_pass() -> None:
    expect_none([])


def test_a_tree_is_asked_by_folder(tmp_path: Path) -> None:
    tree = Tree(tmp_path, ("tests/a.py", "tools/BUILD.bazel", "tools/b.py", "training/notes.md"))
    assert tree.python() == ["tests/a.py", "tools/b.py"]
    assert tree.python("tools", "training") == ["tools/b.py"]
    assert tree.build_files() == ["tools/BUILD.bazel"]
