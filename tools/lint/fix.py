"""Repairs what a program can repair, and says which files it changed: `./bazelw run //tools/lint:fix`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.lint.checkers import run_checker
from tools.lint.tree import Tree, tree_at


def main() -> int:
    """0 if nothing is left to repair by hand.

    Raises:
        SystemExit: there is no checkout to repair.
    """
    workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
    if workspace is None:
        raise SystemExit("fix: no workspace; expected to be started by Bazel. hint: ./bazelw run //tools/lint:fix")
    tree = tree_at(Path(workspace))
    before = _contents(tree)
    fixed = run_checker("ruff", "check", "--no-cache", "--fix", "--output-format=concise", ".", folder=tree.root)
    formatted = run_checker("ruff", "format", "--no-cache", "--quiet", ".", folder=tree.root)
    print(fixed.stdout, formatted.stdout, _buildifier(tree), sep="", end="")
    after = _contents(tree)
    changed = [path for path in after if after[path] != before.get(path)]
    print("".join(f"changed {path}\n" for path in changed) or "changed nothing\n", end="")
    return 1 if fixed.returncode or formatted.returncode else 0


def _contents(tree: Tree) -> dict[str, bytes]:
    """The files that a checker may write, as they are now."""
    paths = {*tree.python(), *_starlark(tree)}
    return {path: (tree.root / path).read_bytes() for path in sorted(paths)}


def _starlark(tree: Tree) -> list[str]:
    return [path for path in tree.files if path.endswith((".bazel", ".bzl"))]


def _buildifier(tree: Tree) -> str:
    """What buildifier said, or that there is none: the one that Bazel found, else the one on PATH."""
    program = os.environ.get("PLUMBLINE_BUILDIFIER") or shutil.which("buildifier")
    if program is None:
        return (
            "no buildifier on PATH: BUILD files stay as they are; //tools/lint:build_files_test says what to change\n"
        )
    command = [str(Path(program).absolute()), "-mode=fix", "-lint=off", *_starlark(tree)]
    finished = subprocess.run(command, cwd=tree.root, capture_output=True, text=True, check=False)
    return finished.stdout + finished.stderr


if __name__ == "__main__":
    sys.exit(main())
