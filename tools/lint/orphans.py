"""Files that no target runs: a test that is in no target is green by absence, which is the worst way to be green."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from tools.lint.imports import FIRST_PARTY
from tools.lint.targets import TEST_KINDS, Target, targets_of
from tools.lint.tree import Finding, Tree

#: Where the macros are.
MACROS = "tools/bazel/"

TEST_FUNCTION = re.compile(r"(?:async )?def test_")


def findings(tree: Tree) -> Iterator[Finding]:
    """Test files without exactly one test, Python files without a target, sources without a file.

    A test file that a macro gives to many tests (each with another row of a table) counts as being in one: the macro
    names it, and what it makes is for Bazel to see.
    """
    macros = "".join(tree.text(path) for path in tree.files if path.startswith(MACROS) and path.endswith(".bzl"))
    users: defaultdict[str, list[Target]] = defaultdict(list)
    for target in targets_of(tree):
        for source, line in target.srcs.items():
            users[source].append(target)
            if source.endswith(".py") and source not in tree.files:
                yield Finding(target.path, line, f"{target.label} lists {source}, which does not exist", "remove it")
    for path in tree.python(*FIRST_PARTY):
        tests = [target.label for target in users[path] if target.kind in TEST_KINDS]
        tests += ["a macro"] * (f'"{_label(path)}"' in macros)
        if path.endswith("_test.py") and len(tests) != 1:
            yield Finding(path, 1, f"is in {_listed(tests)}; expected exactly one py_test", _hint(path))
        elif not users[path] and not _only_marks_a_package(path, tree):
            yield Finding(path, 1, "is in no target, so nothing checks or ships it", _hint(path))
        elif path.startswith("tests/") and not tests:
            for number, text in enumerate(tree.text(path).splitlines(), start=1):
                if TEST_FUNCTION.match(text):
                    yield Finding(
                        path, number, "is a test that is never collected", "move it to a file named *_test.py"
                    )


def _only_marks_a_package(path: str, tree: Tree) -> bool:
    """True for an __init__.py among the tests that holds its docstring and nothing to check or to run."""
    if not (path.startswith("tests/") and path.endswith("/__init__.py")):
        return False
    return all(isinstance(statement, ast.Expr) for statement in ast.parse(tree.text(path)).body)


def _listed(labels: list[str]) -> str:
    return f"{len(labels)} py_tests ({', '.join(labels)})" if labels else "no py_test"


def _label(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"//{folder}:{name}"


def _hint(path: str) -> str:
    return f"list it once, in {path.rpartition('/')[0]}/BUILD.bazel"
