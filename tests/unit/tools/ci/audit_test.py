"""A test that no lane runs, a tag that no table has, and an action that would go astray are each named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.bazel.starlark import starlark
from tools.ci.audit import (
    CI,
    WORKFLOWS,
    Lane,
    Target,
    astray,
    lanes_of,
    nowhere,
    pool_for,
    targets_of,
    unexplained,
    without_wheels,
)
from tools.ci.last_run import MATRIX
from tools.ci.views import SMOKE_SECONDS_MAX
from tools.pools.table import TABLE

NAMES = starlark(Path(TABLE).read_text())


def known(*targets: Target) -> dict[str, Target]:
    return {each.label: each for each in targets}


UNIT = Target("//tests/unit/a:x_test", frozenset({"cpu", "unit"}))
BESIDE = Target("//tests/unit/ab:y_test", frozenset({"cpu", "unit"}))
CELL = Target("//tests/smoke:smoke.c_x4.gpu-amd", frozenset({"gpu-amd", "smoke", "multi-gpu"}), num_cards=4)
DEEP = Target("//tests/smoke:smoke.d_x1.gpu-amd", frozenset({"gpu-amd", "smoke", "manual"}), num_cards=1)
TIMED = Target("//tests/benchmark:timed", frozenset({"cpu", "benchmark", "manual", "material"}))
ROUTE = Target("//tests/smoke:routes.x", frozenset({"cpu", "smoke", "manual", "material", "route:gpu-amd-x4"}))
SUITE = Target("//tests/smoke:full.gpu-amd", frozenset({"manual"}), suite=(CELL.label, DEEP.label))
ALL = known(UNIT, BESIDE, CELL, DEEP, TIMED, SUITE)


@pytest.mark.parametrize(
    ("lane", "run"),
    [
        (Lane("", ("//...",)), {UNIT, BESIDE, CELL}),
        (Lane("", ("//tests/unit/a/...",)), {UNIT}),
        (Lane("", ("//...",), frozenset({"gpu-amd"})), {CELL}),
        (Lane("", (SUITE.label,)), {CELL, DEEP}),
        (Lane("", (TIMED.label, UNIT.label)), {TIMED, UNIT}),
        (Lane("", ("//tests/unit/a:gone_test",)), set()),
    ],
)
def test_a_lane_runs_what_its_command_would(lane: Lane, run: set[Target]) -> None:
    """A pattern that ends in dots leaves out what is manual; a name does not, nor does a suite."""
    assert lane.runs(ALL) == {each.label for each in run}


def test_a_test_that_no_lane_runs_is_named_unless_it_is_there_for_another() -> None:
    assert nowhere(ALL, [Lane("", ("//...",))]) == [DEEP.label]
    assert nowhere(ALL, [Lane("", ("//...",)), Lane("", (SUITE.label,))]) == []


WORKFLOW: dict[str, Any] = {
    "jobs": {
        "test": {
            "strategy": {"matrix": {"include": [{"lane": "one", "targets": "//a //b:c"}, {"lane": "two"}]}},
            "steps": [
                {"uses": "somebody/else"},
                {"run": "./bazelw test --config=ci $TARGETS # //not:this", "env": {"TARGETS": "${{ matrix.targets }}"}},
            ],
        },
        "ci": {"steps": [{"run": ".ci/run"}]},
        "quick": {"steps": [{"run": ".ci/run $TIERS", "env": {"TIERS": "lint unit"}}]},
        "gpu-amd": {"uses": f"./{WORKFLOWS}/cards.yml", "with": {"accelerator": "gpu-amd"}},
    }
}
CALLED: dict[str, Any] = {
    True: {"workflow_call": {"inputs": {"accelerator": {}, "targets": {"default": "//tests/smoke/..."}}}},
    "jobs": {
        "smoke": {
            "env": {"TAG": "${{ inputs.accelerator }}"},
            "steps": [{"run": './bazelw test \\\n --test_tag_filters="$TAG" "${{ inputs.targets }}"'}],
        }
    },
}


def test_lanes_are_the_commands_of_each_row_of_a_job_and_of_each_call_of_a_workflow() -> None:
    lanes = lanes_of(
        "set -e\n./bazelw test //... --config=ci\n./bazelw run //x", {"a.yml": WORKFLOW, "cards.yml": CALLED}
    )
    assert lanes == [
        Lane("a.yml test one", ("//a", "//b:c")),
        Lane("a.yml test two", ()),
        Lane("a.yml ci", ("//...",)),
        Lane("a.yml quick", ("//tools/lint/...", "//tests/unit/...")),
        Lane("a.yml gpu-amd", ("//tests/smoke/...",), frozenset({"gpu-amd"})),
    ]


def test_the_lanes_that_are_checked_in_cover_every_tier_and_every_accelerator() -> None:
    workflows = {file.name: yaml.safe_load(file.read_text()) for file in sorted(Path(WORKFLOWS).glob("*.yml"))}
    lanes = lanes_of(Path(CI).read_text(), workflows)
    cards = {accelerator for accelerator, row in NAMES["ACCELERATORS"].items() if row.cards}
    assert {accelerator for lane in lanes for accelerator in lane.tags} == cards
    by_job = {lane.where: lane.patterns for lane in lanes}
    assert by_job["ci.yml quick"] == ("//tools/lint/...", "//tests/unit/...")
    assert by_job["ci.yml test"] == by_job["dependencies.yml test"] == ("//...",)
    smoke = [patterns for patterns in by_job.values() if "smoke" in " ".join(patterns)]
    assert len(smoke) > 10
    assert all(MATRIX in patterns for patterns in smoke), "without it nothing says which cells are missing"
    assert all(lane.patterns and "$" not in "".join(lane.patterns) for lane in lanes)


def test_the_lane_of_an_accelerator_may_take_as_long_as_the_report_says() -> None:
    cards = yaml.safe_load(Path(WORKFLOWS, "cards.yml").read_text())
    assert cards[True]["workflow_call"]["inputs"]["minutes"]["default"] * 60 == SMOKE_SECONDS_MAX["gpu"] == 1800
    ci = yaml.safe_load(Path(WORKFLOWS, "ci.yml").read_text())["jobs"]
    assert not [name for name, job in ci.items() if "minutes" in job.get("with", {})]


def test_every_lane_of_a_night_leaves_what_it_measured_and_all_of_it_is_compared() -> None:
    def commands(file: str) -> str:
        (job,) = [job for job in yaml.safe_load(Path(WORKFLOWS, file).read_text())["jobs"].values() if "steps" in job]
        return "\n".join(step.get("run", "") for step in job["steps"])

    store = ".plumbline/measured/history.jsonl"
    for file in ("nightly.yml", "cards.yml"):
        assert f"//tools/ci:history -- append --store={store}" in commands(file)
    append, compare = (line.split(" -- ")[1] for line in commands("history.yml").splitlines() if " -- " in line)
    assert append == "append --store=.plumbline/store/history.jsonl --from .plumbline/measured/*/history.jsonl"
    assert compare.startswith("compare --store=.plumbline/store/history.jsonl ")
    jobs = yaml.safe_load(Path(WORKFLOWS, "nightly.yml").read_text())["jobs"]
    assert jobs["history"]["uses"] == f"./{WORKFLOWS}/history.yml"
    assert {*jobs["history"]["needs"]} == jobs.keys() - {"history"}


def test_a_tag_that_no_table_has_is_named() -> None:
    assert unexplained(ALL.values(), NAMES) == []
    odd = Target("//a:b", frozenset({"cpu", "cpu:2", "needs:cpp", "route:gpu-amd", "flaky", "ram:3"}))
    assert unexplained([odd], NAMES) == ["flaky", "ram:3"]


def aquery(*actions: tuple[Target | str, str, str | None]) -> dict[str, Any]:
    """What Bazel prints: for each action its target, its mnemonic and its pool."""
    labels = [each if isinstance(each, str) else f"@@{each.label}" for each, _, _ in actions]
    return {
        "targets": [{"id": number, "label": label} for number, label in enumerate(labels)],
        "actions": [
            {"targetId": number, "mnemonic": mnemonic}
            | ({"executionInfo": [{"key": "Pool", "value": pool}]} if pool else {})
            for number, (_, mnemonic, pool) in enumerate(actions)
        ],
    }


RIGHT: list[tuple[Target | str, str, str | None]] = [
    (UNIT, "TestRunner", None),
    (BESIDE, "TestRunner", None),
    (CELL, "TestRunner", "gpu-amd-x4"),
    ("//training:step", "PyTemplate", None),
    (DEEP, "TestRunner", "gpu-amd"),
    (TIMED, "TestRunner", None),
]


def test_what_goes_where_it_should_is_nothing_to_say() -> None:
    assert astray(ALL, aquery(*RIGHT), "gpu-amd", NAMES) == []


def test_what_is_manual_goes_astray_like_anything_else() -> None:
    lacking = [each for each in RIGHT if each[0] is not DEEP]
    assert astray(ALL, aquery(*lacking), "gpu-amd", NAMES) == [f"{DEEP.label}: would not be run"]
    wrong = [*lacking, (DEEP, "TestRunner", "gpu-amd-x4")]
    assert astray(ALL, aquery(*wrong), "gpu-amd", NAMES) == [
        f"{DEEP.label}: its test would go to gpu-amd-x4; expected gpu-amd"
    ]


@pytest.mark.parametrize(
    ("number", "action", "said"),
    [
        (0, (UNIT, "TestRunner", "gpu-amd"), [f"{UNIT.label}: its test would go to gpu-amd; expected cpu"]),
        (2, (CELL, "TestRunner", None), [f"{CELL.label}: its test would go to cpu; expected gpu-amd-x4"]),
        (2, (CELL, "TestRunner", "gpu-amd"), [f"{CELL.label}: its test would go to gpu-amd; expected gpu-amd-x4"]),
        (2, (CELL, "PyTemplate", None), [f"{CELL.label}: would not be run"]),
        (
            3,
            ("//training:step", "PyTemplate", "gpu-amd"),
            ["//training:step: PyTemplate would go to gpu-amd; expected cpu, where things are built"],
        ),
        (3, ("//tools/pools:routes.gpu-amd-x4", "Route", "gpu-amd-x4"), []),
        (3, ("//tools/pools:routes.nowhere", "Route", "nowhere"), []),
        (
            3,
            ("//tools/pools:routes.gpu-amd", "Route", "gpu-amd-x4"),
            ["//tools/pools:routes.gpu-amd: would show the way to gpu-amd-x4; expected gpu-amd, as it is called"],
        ),
    ],
)
def test_an_action_that_would_go_astray_is_named(
    number: int, action: tuple[Target | str, str, str | None], said: list[str]
) -> None:
    assert astray(ALL, aquery(*RIGHT[:number], action, *RIGHT[number + 1 :]), "gpu-amd", NAMES) == said


def test_a_test_of_another_accelerator_is_not_to_be_run() -> None:
    assert astray(ALL, aquery(*RIGHT), "gpu-nvidia", NAMES) == [
        f"{each.label}: would be run without its accelerator" for each in (CELL, DEEP)
    ]


def test_before_wheels_are_resolved_the_tests_are_looked_at_that_need_none() -> None:
    cards = Target("//tests/smoke:cards_test.gpu-amd", frozenset({"gpu-amd", "smoke"}), num_cards=1)
    heavy = replace(CELL, wheels=frozenset({"@pypi//torch:torch"}))
    assert without_wheels(known(cards, heavy, UNIT, SUITE), "gpu-amd") == known(cards)


def test_targets_are_read_from_what_bazel_prints() -> None:
    def rule(name: str, kind: str, *inputs: str, **attributes: Any) -> str:
        told = [{"name": key, **value} for key, value in attributes.items()]
        made = {"name": name, "ruleClass": kind, "attribute": told, "ruleInput": inputs}
        return json.dumps({"type": "RULE", "rule": made})

    def strings(*values: str) -> dict[str, list[str]]:
        return {"stringListValue": list(values)}

    env = {"stringDictValue": [{"key": "PLUMBLINE_CARDS", "value": "4"}]}
    lines = [
        rule(
            CELL.label,
            "py_test",
            "//training:step",
            "@@rules+wheels+pypi//pytest:pytest",
            tags=strings(*CELL.tags),
            env=env,
        ),
        rule("@@" + UNIT.label, "py_test", "@pypi//pytest:pytest", tags=strings(*UNIT.tags)),
        rule(
            SUITE.label,
            "test_suite",
            tags=strings("manual"),
            tests=strings(*(f"@@{each}" for each in SUITE.suite or ())),
        ),
        rule("//training:step", "py_library", "//training:step.py", "@@rules+wheels+pypi//torch:torch"),
        "",
    ]
    cell = replace(CELL, wheels=frozenset({"@@rules+wheels+pypi//torch:torch"}))
    assert targets_of(lines) == known(cell, UNIT, SUITE)


def test_a_test_of_the_cpu_that_shows_the_way_to_a_pool_goes_there() -> None:
    assert pool_for(ROUTE, NAMES) == "gpu-amd-x4"
    sent = [*RIGHT, (ROUTE, "TestRunner", "cpu")]
    assert astray({**ALL, ROUTE.label: ROUTE}, aquery(*sent), "gpu-amd", NAMES) == [
        f"{ROUTE.label}: its test would go to cpu; expected gpu-amd-x4"
    ]
