"""The working tree that a check looks at, and the shape of what it finds.

Under Bazel a check gets one archive of everything git would not ignore, so its answer cannot depend on files that lie
about on one machine. Outside Bazel (an editor, a plain pytest) it gets the repository around this file, through git's
own listing.
"""

import os
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Folders that must hold Python files: a check that was handed an empty tree would be green without having looked.
PYTHON_FOLDERS = ("tests", "tools", "training")


@dataclass(frozen=True, order=True)
class Finding:
    """One thing to change: where, what, and what to do about it."""

    path: str
    line: int
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}. hint: {self.hint}"


@dataclass(frozen=True)
class Tree:
    """Files below one folder; paths are relative to it, sorted, with forward slashes."""

    root: Path
    files: tuple[str, ...]

    def text(self, path: str) -> str:
        """The content of a file as UTF-8; bytes that are not are replaced, since a check reads and never writes."""
        return (self.root / path).read_text(encoding="utf-8", errors="replace")

    def python(self, *folders: str) -> list[str]:
        """The Python files under the folders, or all of them if none is named."""
        return [path for path in self.files if path.endswith(".py") and (not folders or path.split("/")[0] in folders)]

    def build_files(self) -> list[str]:
        """The BUILD files, by either of the names that Bazel accepts."""
        return [path for path in self.files if path.rpartition("/")[2] in ("BUILD", "BUILD.bazel")]


def tree_at(root: Path) -> Tree:
    """The tree at a folder: what git does not ignore if it is a checkout, else every file that is not bytecode."""
    if (root / ".git").exists():
        listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
        found = (name for name in names if name and (root / name).is_file())
    else:
        paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        found = (path.as_posix() for path in paths if "__pycache__" not in path.parts)
    return Tree(root, tuple(sorted(found)))


def open_tree() -> Tree:
    """The tree under check: the archive named by PLUMBLINE_TREE, unpacked, or else the repository around this file.

    Raises:
        RuntimeError: the tree lacks what every checkout has, so a green answer would mean nothing.
    """
    archive = os.environ.get("PLUMBLINE_TREE")
    if archive is None:
        root = Path(__file__).resolve().parents[2]
    else:
        root = Path(os.environ["TEST_TMPDIR"], "tree")
        runfiles = Path(os.environ["TEST_SRCDIR"], os.environ["TEST_WORKSPACE"])
        with tarfile.open(runfiles / archive) as packed:
            packed.extractall(root, filter="data")
    tree = tree_at(root)
    missing = [folder for folder in PYTHON_FOLDERS if not tree.python(folder)]
    if missing:
        raise RuntimeError(f"{root}: no Python files in {', '.join(missing)}; expected a whole checkout")
    return tree


def expect_none(findings: Iterable[Finding]) -> None:
    """Fails the test with every finding, one on a line, so that one run shows all there is to do.

    Raises:
        AssertionError: there is a finding.
    """
    lines = [str(finding) for finding in sorted(findings)]
    if lines:
        raise AssertionError("\n".join([f"{len(lines)} to repair; try ./bazelw run //tools/lint:fix first", *lines]))
