"""What a change needs to run, and why: for each test, the way from a changed file to it.

    ./bazelw run //tools/ci:affected -- --base main
    ./bazelw run //tools/ci:affected -- --base main --targets > targets
    ./bazelw test --skip_incompatible_explicit_targets --target_pattern_file=targets

It follows the graph that Bazel loads. Where it cannot follow, it says everything: a change of a macro, of the module
graph, of a lock, of an rc file, or of a file that nobody's target names and that is no document. A test too many costs
time; one too few costs trust.

Smoke runs are left out of a change of words alone: where each file that leads to them says the same to Python as
before, without its comments and docstrings.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

EVERYTHING = re.compile(
    r".*\.bzl|(.*/)?MODULE\.bazel|MODULE\.bazel\.lock|WORKSPACE|\.bazelrc|\.bazelversion|\.bazelignore|\.python-version|bazelw|"
    r"(.*/)?requirements\w*\.(in|txt)|tools/(bazel|pypi|devices)/.*|\.ci/.*"
)
"""Files whose meaning the graph of targets does not hold."""

DOCUMENTS = re.compile(r"[^/]+\.md|docs/.*|\.github/.*|\.gitignore|LICENSE")
"""Files that may be in no target and then concern none."""

TREE = "@plumbline_tree//:tree.tar"
"""Holds every file of the working tree, so that every change changes it."""

SMOKE = "//tests/smoke:smoke."


@dataclass(frozen=True)
class Graph:
    """What Bazel loaded: each target with what it is made from, and which of them are tests of `...`."""

    inputs: Mapping[str, Collection[str]]
    tests: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """Tests with the way from a changed file to each, or the reason why it is all of them."""

    ways: Mapping[str, tuple[str, ...]]
    everything: str = ""


def affected(
    graph: Graph, changed: Iterable[str], words_only: Collection[str] = (), moved: Collection[str] = ()
) -> Answer:
    """The tests that changed files reach.

    Args:
        graph: of the tree after the change.
        changed: paths from the root, of files that came, went or are others.
        words_only: those of them that say the same to Python as before.
        moved: those that went, and BUILD files that came.
    """
    changed = sorted(set(changed))
    sources = {label for inputs in graph.inputs.values() for label in inputs} | set(graph.inputs)
    roots: dict[str, str] = {}
    for path in changed:
        found = _labels(path, sources)
        if path in moved:
            return _everything(graph, path, "a pattern may have had what is not in its package any more")
        if EVERYTHING.fullmatch(path):
            return _everything(graph, path, "what it means is not in the graph of targets")
        if not found and not DOCUMENTS.fullmatch(path):
            return _everything(graph, path, "no target names it")
        roots |= {label: path for label in found}
        roots.setdefault(TREE, path)
    ways = _ways(graph, roots)
    said = _ways(graph, {label: path for label, path in roots.items() if path not in words_only})
    return Answer(
        {
            test: said[test] if test.startswith(SMOKE) else way
            for test, way in ways.items()
            if not test.startswith(SMOKE) or test in said
        }
    )


def _everything(graph: Graph, path: str, why: str) -> Answer:
    return Answer({test: (path, "...", test) for test in sorted(graph.tests)}, f"{path}: {why}")


def _labels(path: str, known: Collection[str]) -> set[str]:
    """The labels that a path has: one of its own, or those of a whole package if it is the package's BUILD file."""
    folder, _, name = path.rpartition("/")
    if name in ("BUILD", "BUILD.bazel"):
        return {label for label in known if label.startswith(f"//{folder}:")}
    parts = path.split("/")
    whole = ("/".join(parts[:at]) + ":" + "/".join(parts[at:]) for at in range(len(parts)))
    return {f"//{label}" for label in whole} & set(known)


def _ways(graph: Graph, roots: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The shortest way from a changed file to each test that one of them reaches."""
    users: dict[str, list[str]] = {}
    for target, inputs in sorted(graph.inputs.items()):
        for each in inputs:
            users.setdefault(each, []).append(target)
    came: dict[str, str | None] = dict.fromkeys(sorted(roots))
    waiting = deque(came)
    while waiting:
        here = waiting.popleft()
        for target in users.get(here, []):
            if target not in came:
                came[target] = here
                waiting.append(target)
    ways = {}
    for test in sorted(graph.tests & came.keys()):
        way = [test]
        while (before := came[way[-1]]) is not None:
            way.append(before)
        path = roots[way[-1]]
        # A file begins it by its path; a BUILD file, by the path and a target of its package.
        ways[test] = (path, *(each for each in reversed(way) if each in graph.inputs))
    return ways


def says_the_same(before: str, after: str) -> bool:
    """True if two texts are one program to Python, apart from comments and docstrings."""
    try:
        one, other = (ast.dump(_without_docstrings(ast.parse(text))) for text in (before, after))
    except (SyntaxError, ValueError):
        return False
    return one == other


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=body)
                | ast.ClassDef(body=body)
                | ast.FunctionDef(body=body)
                | ast.AsyncFunctionDef(body=body)
            ):
                body[:] = [
                    each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
                ]
    return tree


def graph_of(lines: Iterable[str], tests: Iterable[str]) -> Graph:
    """The graph in what `query --output=streamed_jsonproto` prints."""
    inputs = {}
    for line in lines:
        rule = json.loads(line).get("rule") if line.strip() else None
        if rule:
            inputs[_short(rule["name"])] = {_short(each) for each in rule.get("ruleInput", [])}
    return Graph(inputs, frozenset(_short(each) for each in tests if each))


def _short(label: str) -> str:
    """A label as people write it: //a:b, and @tree//:b for whatever canonical name the repository has."""
    if label.startswith("@@//"):
        return label[2:]
    if label.startswith("@") and label.endswith("plumbline_tree//:tree.tar"):
        return TREE
    return label


def _run(*command: str, root: Path) -> str:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def changes(root: Path, base: str) -> tuple[list[str], set[str]]:
    """What differs between a revision and the working tree, and what of it went, or is a BUILD file that came."""
    told = _run("git", "diff", "--name-status", "--no-renames", "-z", base, root=root).split("\0")[:-1]
    states = dict(zip(told[1::2], told[::2], strict=True))
    others = _run("git", "ls-files", "--others", "--exclude-standard", "-z", root=root).split("\0")[:-1]
    states |= dict.fromkeys(others, "A")
    build = ("BUILD", "BUILD.bazel")
    moved = {path for path, state in states.items() if state == "D" or (state == "A" and Path(path).name in build)}
    return sorted(states), moved


def words_only(root: Path, base: str, changed: Iterable[str]) -> set[str]:
    """Those of the changed files that say the same to Python as they did."""
    same = set()
    for path in changed:
        before = subprocess.run(
            ["git", "show", f"{base}:{path}"], cwd=root, capture_output=True, text=True, check=False
        )
        if path.endswith(".py") and before.returncode == 0 and (root / path).exists():
            same |= {path} if says_the_same(before.stdout, (root / path).read_text(encoding="utf-8")) else set()
    return same


def main(arguments: list[str]) -> int:
    """Prints each test with its way, or the targets alone."""
    parser = argparse.ArgumentParser(description="What a change needs to run, and why.")
    parser.add_argument(
        "--base", required=True, help="revision that the change is compared with, at their common ancestor"
    )
    parser.add_argument("--targets", action="store_true", help="labels alone, for a command line")
    options = parser.parse_args(arguments)
    root = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    base = _run("git", "merge-base", options.base, "HEAD", root=root).strip()
    changed, moved = changes(root, base)
    query = ("./bazelw", "query", "--noshow_progress", "--ui_event_filters=-info")
    tests = _run(*query, "tests(//...) except attr(tags, manual, //...)", root=root).splitlines()
    lines = _run(*query, "//...", "--output=streamed_jsonproto", root=root).splitlines()
    answer = affected(graph_of(lines, tests), changed, words_only(root, base, changed), moved)
    if answer.everything:
        print(f"everything, for {answer.everything}", file=sys.stderr)
    for test, way in answer.ways.items():
        print(test if options.targets else " → ".join(way))
    print(f"{len(answer.ways)} of {len(tests)} tests for {len(changed)} changed files", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
