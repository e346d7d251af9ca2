"""That what a change reaches is run: on graphs drawn at random, on shapes of ours, and when nobody can know."""

import itertools
import json
from collections.abc import Mapping, Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tools.ci.checkouts import git
from tools.ci.affected import TREE, Answer, Graph, affected, changes, graph_of, says_the_same, words_only

GRAPH = Graph(
    {
        "//training:step": {"//training:step.py", "//training:errors"},
        "//training:errors": {"//training:errors.py"},
        "//tests/unit:step_test": {"//tests/unit:step_test.py", "//training:step"},
        "//tests/unit:errors_test": {"//tests/unit:errors_test.py", "//training:errors"},
        "//tests/smoke:smoke.sft_ddp_x2": {"//tests/smoke:cell_test.py", "//training:step"},
        "//tools/lint:words_test": {"//tools/lint:words_test.py", TREE},
        "//:page_test": {"//:docs/page.md", "//training:errors"},
    },
    frozenset(
        (
            "//tests/unit:step_test",
            "//tests/unit:errors_test",
            "//tests/smoke:smoke.sft_ddp_x2",
            "//tools/lint:words_test",
            "//:page_test",
        )
    ),
)
LINT = {"//tools/lint:words_test"}


def test_a_change_runs_what_it_reaches_and_says_by_which_way() -> None:
    answer = affected(GRAPH, ["training/step.py"])
    assert answer == Answer(
        {
            "//tests/unit:step_test": ("training/step.py", "//training:step", "//tests/unit:step_test"),
            "//tests/smoke:smoke.sft_ddp_x2": ("training/step.py", "//training:step", "//tests/smoke:smoke.sft_ddp_x2"),
            "//tools/lint:words_test": ("training/step.py", "//tools/lint:words_test"),
        }
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([], set()),
        (["README.md"], LINT),
        (["docs/page.md"], LINT | {"//:page_test"}),
        (["tests/unit/step_test.py"], LINT | {"//tests/unit:step_test"}),
        (["tests/unit/BUILD.bazel"], LINT | {"//tests/unit:step_test", "//tests/unit:errors_test"}),
        (["training/BUILD.bazel"], GRAPH.tests),
        (["training/errors.py", "README.md"], GRAPH.tests),
    ],
)
def test_files_that_the_graph_knows_run_what_depends_on_them(changed, expected) -> None:
    answer = affected(GRAPH, changed)
    assert answer.ways.keys() == expected
    assert not answer.everything


@pytest.mark.parametrize(
    "path",
    [
        "tools/bazel/defs.bzl",
        "tools/bazel/hermetic.py",
        "MODULE.bazel",
        "tools/pypi/debian/MODULE.bazel",
        "requirements_lock.txt",
        "requirements_lock_cuda.txt",
        "tests/benchmark/requirements.in",
        ".bazelrc",
        "bazelw",
        ".ci/run",
        "training/gone.py",
        "training/new/data.json",
    ],
)
def test_what_the_graph_does_not_know_runs_everything(path) -> None:
    answer = affected(GRAPH, ["README.md", path])
    assert answer.ways.keys() == GRAPH.tests
    assert answer.everything.startswith(f"{path}: ")


@pytest.mark.parametrize("path", ["docs/page.md", "training/BUILD.bazel", "training/step.py"])
def test_a_file_that_went_may_have_been_in_a_pattern(path) -> None:
    answer = affected(GRAPH, [path], moved=[path])
    assert answer.ways.keys() == GRAPH.tests
    assert answer.everything.startswith(f"{path}: ")


def test_words_alone_need_no_smoke_run() -> None:
    smoke = "//tests/smoke:smoke.sft_ddp_x2"
    both = ["training/step.py", "training/errors.py"]
    assert affected(GRAPH, both, words_only=both).ways.keys() == GRAPH.tests - {smoke}
    assert affected(GRAPH, both, words_only=both[:1]).ways[smoke] == (
        "training/errors.py",
        "//training:errors",
        "//training:step",
        smoke,
    )


LABELS = [f"//p:{number}" for number in range(12)]


@st.composite
def graphs(draw) -> tuple[Graph, set[str], set[str]]:
    """A graph of targets on files, which files changed, and which of those say the same."""
    files = [f"p/f{number}.py" for number in range(6)]
    inputs: dict[str, set[str]] = {}
    for number, label in enumerate(LABELS):
        # What comes later depends on what came before: Bazel allows no circles.
        known = [*LABELS[:number], *(f"//p:{file[2:]}" for file in files)]
        inputs[label] = set(draw(st.lists(st.sampled_from(known), max_size=4)))
    inputs["//tests/smoke:smoke.a"] = set(draw(st.lists(st.sampled_from(LABELS), max_size=3)))
    tests = {*draw(st.sets(st.sampled_from(LABELS))), "//tests/smoke:smoke.a"}
    changed = draw(st.sets(st.sampled_from(files)))
    return Graph(inputs, frozenset(tests)), changed, {each for each in changed if draw(st.booleans())}


def needs(inputs: Mapping[str, Set[str]], label: str) -> set[str]:
    """Everything below a target, found from above."""
    below = inputs.get(label, set())
    return {label, *below, *(deep for each in below for deep in needs(inputs, each))}


@given(graphs())
def test_no_graph_makes_it_leave_out_a_test_that_depends_on_a_change(drawn) -> None:
    graph, changed, words = drawn
    answer = affected(graph, changed, words)
    named = {label for inputs in graph.inputs.values() for label in inputs}
    if any(f"//{path.replace('/', ':')}" not in named for path in changed):
        assert answer.everything
        assert answer.ways.keys() == graph.tests
        return
    for test in graph.tests:
        counted = changed - words if "smoke" in test else changed
        below = needs(graph.inputs, test)
        reached = any(f"//{path.replace('/', ':')}" in below for path in counted)
        assert reached == (test in answer.ways)
    for test, (first, *way) in answer.ways.items():
        steps = [f"//{first.replace('/', ':')}", *way]
        assert way[-1] == test
        assert all(one in graph.inputs[other] for one, other in itertools.pairwise(steps))


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ('"""Another."""\n\n\ndef f(x):\n    """Words."""\n    # why\n    return x + 1\n', True),
        ('"""One."""\ndef f(x): return x + 2\n', False),
        ('"""One."""\ndef f(x, y=0): return x + 1\n', False),
        ("def f(x:\n", False),
    ],
)
def test_comments_and_docstrings_are_words_and_all_else_is_not(after, same) -> None:
    assert says_the_same('"""One."""\ndef f(x):\n    return x + 1\n', after) == same


def test_the_graph_is_read_from_what_bazel_prints() -> None:
    rule = {"name": "//tools/lint:words_test", "ruleInput": ["@@_main~tree~plumbline_tree//:tree.tar", "@@//a:b.py"]}
    lines = [json.dumps({"type": "RULE", "rule": rule}), json.dumps({"type": "SOURCE_FILE"}), ""]
    graph = graph_of(lines, ["//tools/lint:words_test", ""])
    assert graph == Graph({"//tools/lint:words_test": {TREE, "//a:b.py"}}, frozenset({"//tools/lint:words_test"}))


def test_changes_are_those_since_a_revision_committed_or_not(tmp_path) -> None:
    for name in ("kept.py", "said.py", "gone.py", "old/BUILD.bazel"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "before")
    (tmp_path / "said.py").write_text("x = 1  # why\n")
    git(tmp_path, "mv", "gone.py", "here.py")
    git(tmp_path, "commit", "-qam", "after")
    (tmp_path / "kept.py").write_text("x = 2\n")
    (tmp_path / "old" / "BUILD.bazel").write_text("\n")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "BUILD.bazel").write_text("\n")
    changed, moved = changes(tmp_path, "HEAD~1")
    assert changed == ["gone.py", "here.py", "kept.py", "new/BUILD.bazel", "old/BUILD.bazel", "said.py"]
    assert moved == {"gone.py", "new/BUILD.bazel"}
    assert words_only(tmp_path, "HEAD~1", changed) == {"said.py"}
