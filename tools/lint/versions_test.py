"""The two ways in which Python and its wheels come in (tools/pypi/debian, tools/pypi/registry) name the same things."""

import re

import pytest

from tools.lint.tree import Tree, open_tree
from tools.pypi.lock import LOCKS

WAYS = ("debian", "registry")


@pytest.fixture(scope="module")
def tree() -> Tree:
    return open_tree()


def test_the_stated_python_is_the_one_that_the_registry_way_downloads(tree: Tree) -> None:
    stated = tree.text(".python-version").strip()
    assert set(re.findall(r'python_version = "([\d.]+)"', tree.text("tools/pypi/registry/MODULE.bazel"))) == {stated}
    assert f"_{stated.replace('.', '')}_" in tree.text("tools/pypi/registry/wheels.bzl")


def test_both_ways_parse_the_same_locks_under_the_same_names(tree: Tree) -> None:
    root = tree.text("MODULE.bazel")
    locks = set(re.findall(r'requirements = "(\S+)"', root))
    assert locks
    for way in WAYS:
        module = tree.text(f"tools/pypi/{way}/MODULE.bazel")
        assert {label.removeprefix("@@") for label in re.findall(r'requirements_lock = "(\S+)"', module)} == locks
        hubs = set(re.findall(r'name = "wheels_(\w+)"', module))
        assert hubs == set(re.findall(r'\n    name = "(pypi\w*)"', root))
        assert hubs == set(re.findall(r'"(\w+)": Label\("@wheels_', tree.text(f"tools/pypi/{way}/wheels.bzl")))


@pytest.mark.parametrize("way", WAYS)
def test_wheels_of_an_accelerator_are_fetched_from_where_its_lock_is_resolved(tree: Tree, way: str) -> None:
    calls = re.findall(
        r"^pip\.parse\(\n(.*?)^\)", tree.text(f"tools/pypi/{way}/MODULE.bazel"), re.MULTILINE | re.DOTALL
    )
    for lock in LOCKS.values():
        if lock.torch:
            (call,) = [each for each in calls if f'"@@//:{lock.lock}"' in each]
            assert re.findall(r"--extra-index-url=([^\"]+)", call) == ([lock.index] if lock.index else [])


def test_the_root_asks_for_the_rules_python_that_the_registry_way_is_written_for(tree: Tree) -> None:
    wanted = re.compile(r'bazel_dep\(name = "rules_python", version = "([\d.]+)"\)')
    root, way = (wanted.findall(tree.text(f"{folder}MODULE.bazel")) for folder in ("", "tools/pypi/registry/"))
    assert root == way
    assert len(root) == 1
