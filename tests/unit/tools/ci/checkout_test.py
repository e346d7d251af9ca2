from pathlib import Path

from tests.unit.tools.ci.checkouts import git
from tools.ci.checkout import commit_of


def test_a_checkout_without_a_commit_has_none(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert commit_of(tmp_path) is None


def test_the_commit_is_named_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--allow-empty", "--quiet", "-m", "A subject\n\nand a body")
    clean = commit_of(tmp_path)
    assert clean is not None
    assert (len(clean.id), clean.subject, clean.changed, clean.name) == (40, "A subject", False, clean.id[:10])
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/new").write_text("")
    changed = commit_of(tmp_path)
    assert changed is not None
    assert changed.name == f"{clean.id[:10]}+"
    assert commit_of(tmp_path, ignoring=("kept",)) == clean
