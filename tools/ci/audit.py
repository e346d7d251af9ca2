"""Whether every test runs somewhere, every tag is explained, and every action goes to the pool that its target names.

    ./bazelw run //tools/ci:audit                 lanes, tags and routes
    ./bazelw run //tools/ci:audit -- --no-routes  lanes and tags alone, which analyse nothing

Lanes are the `bazelw test` commands of .ci/run and of the workflows, as their jobs run them: with each row of a job's
matrix, and each call of a workflow that others call. A test that no lane runs is red here, for it proves nothing.
.ci/run looks at lanes and tags after each run of everything.

Routes are read from the actions that Bazel would send (`aquery`), under --config=remote alone and with each
accelerator: a test goes to the pool whose machines have the cards that it will look for, and what builds it goes to the
cpu's. Where the wheels of an accelerator are not resolved yet, those of its tests are looked at that need none; where
they are, Bazel fetches them to know. No farm is asked: where a worker really was is what `//tools/pools:routes` says.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.bazel.starlark import starlark
from tools.pools.table import TABLE

WORKFLOWS = ".github/workflows"
CI = ".ci/run"
CPU = "cpu"
ROUTE = "Route"
"""The one action that is for cards and no test: `//tools/pools:routes.gpu-amd` shows the way to that pool."""
PYTEST = "pypi//pytest:pytest"
"""How the label of the one wheel ends that every test has."""
UNRESOLVED = "# Not resolved yet"
"""How a lock begins that nobody has resolved: without its wheels Bazel cannot say what a test of it would do."""
MADE_TAGS = {"multi-gpu", "cpu:", "needs:", "route:", "__PYTHON_RULES_MIGRATION_DO_NOT_USE_WILL_BREAK__"}
"""What macros add beside tier and accelerator, the last one rules_python's: whole words, and beginnings that end in a
colon."""


@dataclass(frozen=True)
class Target:
    """A test, or a suite of tests, as its BUILD file has it."""

    label: str
    tags: frozenset[str]
    num_cards: int = 0
    """Which it will look for before it runs."""
    suite: tuple[str, ...] | None = None
    """The members, if it is a suite."""
    wheels: frozenset[str] = frozenset()
    """Those that it needs, but for the one that every test has."""


@dataclass(frozen=True)
class Lane:
    """One command of CI."""

    where: str
    """The file, the job, and which of its rows."""
    patterns: tuple[str, ...]
    tags: frozenset[str] = frozenset()
    """Of which a test needs one; none asks for nothing."""

    def runs(self, targets: Mapping[str, Target]) -> set[str]:
        """The tests that the command runs, whether or not its machine can."""
        found = set()
        for pattern in self.patterns:
            if pattern.endswith("..."):
                below = pattern.removesuffix("...").rstrip("/")
                tests = (each for each in targets.values() if each.suite is None and "manual" not in each.tags)
                found |= {each.label for each in tests if each.label.startswith((f"{below}/", f"{below}:"))}
            elif pattern in targets:
                found |= set(targets[pattern].suite or (pattern,))
        return {each for each in found if not self.tags or self.tags & targets[each].tags}


def targets_of(lines: Iterable[str]) -> dict[str, Target]:
    """Tests and suites in what `query --output=streamed_jsonproto` prints of all rules, by label."""
    found = {}
    rules = [rule for line in filter(str.strip, lines) if (rule := json.loads(line).get("rule"))]
    inputs = {_plain(rule["name"]): frozenset(map(_local, rule.get("ruleInput", []))) for rule in rules}
    below: dict[str, frozenset[str]] = {}
    for rule in rules:
        attributes = {each["name"]: each for each in rule.get("attribute", [])}
        tags = frozenset(attributes.get("tags", {}).get("stringListValue", []))
        if rule.get("ruleClass") == "test_suite":
            members = tuple(attributes.get("tests", {}).get("stringListValue", []))
            found[_plain(rule["name"])] = Target(_plain(rule["name"]), tags, suite=tuple(map(_plain, members)))
        elif rule.get("ruleClass", "").endswith("_test"):
            env = {each["key"]: each["value"] for each in attributes.get("env", {}).get("stringDictValue", [])}
            label = _plain(rule["name"])
            wheels = frozenset(each for each in _wheels(label, inputs, below) if not each.endswith(PYTEST))
            found[label] = Target(label, tags, int(env.get("PLUMBLINE_CARDS", 0)), wheels=wheels)
    return found


def _wheels(label: str, inputs: Mapping[str, frozenset[str]], below: dict[str, frozenset[str]]) -> frozenset[str]:
    """The wheels that a target reaches; `below` keeps what was found."""
    if label not in below:
        below[label] = frozenset()  # Bazel has no circles.
        mine = inputs.get(label, frozenset())
        wheels = frozenset(each for each in mine if "pypi" in each.partition("//")[0])
        below[label] = wheels.union(*(_wheels(each, inputs, below) for each in mine & inputs.keys()))
    return below[label]


def _local(label: str) -> str:
    """A label as _plain has it, if it is of this repository."""
    return _plain(label) if label.startswith(("//", "@//", "@@//")) else label


def _plain(label: str) -> str:
    return label[label.index("//") :]


def lanes_of(ci: str, workflows: Mapping[str, Any]) -> list[Lane]:
    """The test commands that CI runs.

    Args:
        ci: the text of .ci/run.
        workflows: the content of each workflow, by its file's name.
    """
    found = []
    for file, workflow in workflows.items():
        for name, job in workflow["jobs"].items():
            for where, known in _rows(file, name, job, workflow, workflows):
                for step in job.get("steps", []):
                    run = _filled(step.get("run", ""), known)
                    env = {**job.get("env", {}), **step.get("env", {})}
                    for variable, value in env.items():
                        run = re.sub(rf"\${{?{variable}\b}}?", _filled(str(value), known), run)
                    found += [Lane(where, *command) for command in _test_commands(_ci(run, ci))]
    return found


def _ci(run: str, ci: str) -> str:
    """The commands of a step, with those of .ci/run in its place: all it has, or the tiers that it is given."""
    command, *tiers = run.split() or [""]
    if command != CI:
        return run
    if tiers:
        return "./bazelw test " + " ".join(f"//{'tools' if tier == 'lint' else 'tests'}/{tier}/..." for tier in tiers)
    # The command for tiers is in it as well.
    return "\n".join(line for line in ci.splitlines() if "${patterns" not in line)


def _rows(
    file: str, name: str, job: Mapping[str, Any], workflow: Mapping[Any, Any], workflows: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Each way in which a job runs: where that is said, and what stands for its expressions."""
    matrix = [
        {f"matrix.{key}": str(value) for key, value in row.items()}
        for row in job.get("strategy", {}).get("matrix", {}).get("include", [{}])
    ]
    # `on` is one of YAML's words for true.
    when = workflow.get("on") or workflow.get(True) or {}
    if "workflow_call" not in when:
        calls: list[tuple[str, dict[str, str]]] = [(f"{file} {name}", {})]
    else:
        inputs = (when["workflow_call"] or {}).get("inputs", {})
        default = {f"inputs.{key}": str(each.get("default", "")) for key, each in inputs.items()}
        calls = [
            (
                f"{caller} {called}",
                default | {f"inputs.{key}": str(value) for key, value in each.get("with", {}).items()},
            )
            for caller, other in workflows.items()
            for called, each in other["jobs"].items()
            if each.get("uses") == f"./{WORKFLOWS}/{file}"
        ]
    for (where, given), row in itertools.product(calls, matrix):
        yield " ".join(filter(None, (where, row.get("matrix.lane")))), given | row


def _filled(text: str, known: Mapping[str, str]) -> str:
    """A text with its ${{ expressions }} replaced, as far as they are plain names."""
    return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", lambda match: known.get(match[1], match[0]), text)


def _test_commands(script: str) -> Iterator[tuple[tuple[str, ...], frozenset[str]]]:
    """Patterns and tag filters of each `bazelw test` in a script."""
    for line in script.replace("\\\n", " ").splitlines():
        words = line.split("#")[0].translate({ord('"'): None, ord("'"): None}).split()
        if words[:2] != ["./bazelw", "test"]:
            continue
        filters = [word.partition("=")[2] for word in words if word.startswith("--test_tag_filters=")]
        patterns = tuple(word for word in words if word.startswith("//"))
        yield patterns, frozenset(each for words in filters for each in words.split(","))


def nowhere(targets: Mapping[str, Target], lanes: Iterable[Lane]) -> list[str]:
    """The tests that no lane runs, but for those that prove nothing by passing."""
    run = {test for lane in lanes for test in lane.runs(targets)}
    tests = {label for label, each in targets.items() if each.suite is None and "material" not in each.tags}
    return sorted(tests - run)


def unexplained(targets: Iterable[Target], names: Mapping[str, Any]) -> list[str]:
    """The tags that are in no table.

    Args:
        targets: whose tags.
        names: of accelerators.bzl.
    """
    known = {*names["ACCELERATORS"], *names["TIERS"], *names["TAGS"], *MADE_TAGS}
    return sorted(
        {tag for each in targets for tag in each.tags if tag not in known and f"{tag.partition(':')[0]}:" not in known}
    )


def astray(
    targets: Mapping[str, Target], aquery: Mapping[str, Any], accelerator: str, names: Mapping[str, Any]
) -> list[str]:
    """What an accelerator's command would send to another pool than it should, or not at all; a sentence each.

    Args:
        targets: all tests.
        aquery: what `aquery --output=jsonproto` printed under the accelerator's --config.
        accelerator: its word; tests of the cpu run under every config.
        names: of accelerators.bzl.
    """
    label_of = {each["id"]: _plain(each["label"]) for each in aquery.get("targets", [])}
    tested, problems = set(), []
    for action in aquery.get("actions", []):
        label = label_of[action["targetId"]]
        pool = next((each["value"] for each in action.get("executionInfo", []) if each["key"] == "Pool"), CPU)
        if action["mnemonic"] == "TestRunner" and label in targets:
            tested.add(label)
            expected = pool_for(targets[label], names)
            if pool != expected:
                problems.append(f"{label}: its test would go to {pool}; expected {expected}")
        elif action["mnemonic"] == ROUTE:
            shown = label.rpartition(".")[2]
            if shown in names["pools"]() and pool != shown:
                problems.append(f"{label}: would show the way to {pool}; expected {shown}, as it is called")
        elif pool != CPU:
            problems.append(f"{label}: {action['mnemonic']} would go to {pool}; expected {CPU}, where things are built")
    for label, each in targets.items():
        optional = any(tag.startswith("needs:") for tag in each.tags)
        if each.suite is None and not optional:
            wanted = bool(each.tags & {accelerator, CPU})
            if wanted and label not in tested:
                problems.append(f"{label}: would not be run")
            if not wanted and label in tested:
                problems.append(f"{label}: would be run without its accelerator")
    return problems


def without_wheels(targets: Mapping[str, Target], accelerator: str) -> dict[str, Target]:
    """The tests of an accelerator that can be analysed although nobody has resolved its wheels."""
    return {
        label: each
        for label, each in targets.items()
        if each.suite is None and accelerator in each.tags and not each.wheels
    }


def pool_for(target: Target, names: Mapping[str, Any]) -> str:
    """The pool whose machines have what a test looks for, or to which it is to show the way."""
    (accelerator,) = target.tags & names["ACCELERATORS"].keys()
    pool: str = names["pool_of"](accelerator, target.num_cards)
    return next((tag.removeprefix("route:") for tag in target.tags if tag.startswith("route:")), pool)


class BazelError(SystemExit):
    """Bazel could not say what was asked; ends the program where nobody takes it."""


def _bazel(*words: str, root: Path) -> str:
    quiet = ("--noshow_progress", "--ui_event_filters=-info,-warning,-error")
    done = subprocess.run(("./bazelw", *words, *quiet), cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BazelError(f"./bazelw {' '.join(words)} failed ({done.returncode})\n{done.stderr[-3000:]}".rstrip())
    return done.stdout


def _said(title: str, problems: Sequence[str], fine: str) -> int:
    """Prints a heading with what was found below it; returns how many that is."""
    print(f"{title:<10} {f'{len(problems)} to mend' if problems else fine}", flush=True)
    for each in problems[:20]:
        print(f"           {each}")
    if len(problems) > 20:
        print(f"           and {len(problems) - 20} more")
    return len(problems)


def main(arguments: list[str]) -> int:
    """Prints what is wrong, or how much was looked at. Exits with 1 if something is."""
    parser = argparse.ArgumentParser(description="Every test in a lane, every tag explained, every action in its pool.")
    parser.add_argument("--no-routes", action="store_true", help="leave out what Bazel must analyse the tree for")
    options = parser.parse_args(arguments)
    root = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    names = starlark((root / TABLE).read_text(encoding="utf-8"))
    short = ("--output=streamed_jsonproto", "--proto:output_rule_attrs=tags,tests,env", "--noproto:default_values")
    targets = targets_of(_bazel("query", "//...", *short, root=root).splitlines())
    files = sorted((root / WORKFLOWS).glob("*.yml"))
    workflows = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    lanes = lanes_of((root / CI).read_text(encoding="utf-8"), workflows)
    num_tests = sum(each.suite is None for each in targets.values())
    problems = _said("lanes", nowhere(targets, lanes), f"{num_tests} tests, each in one of {len(lanes)}")
    for lane in lanes:
        print(f"           {len(lane.runs(targets)):6d} {lane.where}")
    tags = Counter(tag for each in targets.values() for tag in each.tags)
    problems += _said("tags", unexplained(targets.values(), names), f"{len(tags)}, all in {TABLE}")
    for accelerator, row in {} if options.no_routes else names["ACCELERATORS"].items():
        config = [f"--config={row.config}"] if row.config else []
        looked_at, universe, beside = targets, "//...", ""
        if (root / row.lock).read_text(encoding="utf-8").startswith(UNRESOLVED):
            looked_at = without_wheels(targets, accelerator)
            universe = " + ".join(looked_at)
            left_out = sum(accelerator in each.tags for each in targets.values()) - len(looked_at)
            beside = f"; unproven: {left_out} tests, for {row.lock} is not resolved yet"
            if not looked_at:
                lacking = f"{row.lock} is not resolved, and no test of {accelerator} does without it; expected one"
                problems += _said(accelerator, [lacking], "")
                continue
        lean = ("--output=jsonproto", "--noinclude_artifacts", "--noinclude_commandline", "--remote_executor=")
        # What is manual is a lane's too.
        try:
            told = _bazel("aquery", universe, "--build_manual_tests", "--config=remote", *config, *lean, root=root)
        except BazelError as error:
            problems += _said(accelerator, [f"{error}; expected its actions. hint: its wheels must be in reach"], "")
            continue
        aquery = json.loads(told)
        num_actions = len(aquery.get("actions", []))
        fine = f"{num_actions} actions with {' '.join(['--config=remote', *config])}, each to its pool{beside}"
        problems += _said(accelerator, astray(looked_at, aquery, accelerator, names), fine)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
