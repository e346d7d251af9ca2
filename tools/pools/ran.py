"""`./bazelw run //tools/pools:ran`: which action ran on which worker of which pool, and whether it belongs there.

Where an action should go is read from its target, by the rule of `//tools/ci:audit`; where it was, from the scheduler's
own database, since the cluster was started. A difference is red, and so is a cluster on which nothing ran: that would
prove nothing. What the cache answered for is not there, for nobody ran it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.bazel.starlark import starlark
from tools.ci.audit import CPU, Target, pool_for, targets_of
from tools.pools.engine import cache
from tools.pools.jobs import Ran, ran
from tools.pools.services import Worker, described
from tools.pools.table import TABLE

UNAVAILABLE = 69


def plain(label: str) -> str:
    """A label of this repository without the name of the repository, as BUILD files have it."""
    return label.removeprefix("@@").removeprefix("@") if label.lstrip("@").startswith("//") else label


def sent(lines: Iterable[str]) -> dict[str, str]:
    """Label -> the pool that a target names for all of its actions, in `query --output=streamed_jsonproto`."""
    found = {}
    for line in filter(str.strip, lines):
        rule = json.loads(line).get("rule", {})
        for attribute in rule.get("attribute", []):
            if attribute["name"] == "exec_properties":
                for each in attribute.get("stringDictValue", []):
                    if each["key"] == "Pool":
                        found[plain(rule["name"])] = each["value"]
    return found


def expected(
    each: Ran, targets: Mapping[str, Target], pools: Mapping[str, str], names: Mapping[str, Any]
) -> str | None:
    """The pool that an action belongs in; None if this checkout does not know its target.

    Args:
        each: the action.
        targets: tests of this checkout by label.
        pools: label -> pool, of targets that name one for all of their actions.
        names: of accelerators.bzl.
    """
    label = plain(each.target)
    if each.is_test:
        return pool_for(targets[label], names) if label in targets else None
    return pools.get(label, CPU) if label else None


def report(
    jobs: Iterable[Ran],
    workers: Iterable[Worker],
    targets: Mapping[str, Target],
    pools: Mapping[str, str],
    names: Mapping[str, Any],
    *,
    every: bool,
) -> tuple[list[str], int]:
    """The lines to print, and how many actions were not where they belong; nothing compared counts as one.

    Args:
        jobs: what ran.
        workers: of the cluster.
        targets: tests of this checkout by label.
        pools: label -> pool, of targets that name one for all of their actions.
        names: of accelerators.bzl.
        every: whether what is no test has a line of its own.
    """
    pool_of = {worker.name: worker for worker in workers}
    lines, unknown, num_astray = [], 0, 0
    count: Counter[str] = Counter()
    for each in jobs:
        worker = pool_of.get(each.worker)
        came, wanted = worker.pool if worker else "no pool of this cluster", expected(each, targets, pools, names)
        where = f"{plain(each.target) or 'unknown'} {each.mnemonic}: {each.worker}, pool {came}"
        if wanted is None:
            unknown += 1
            lines.append(f"unknown    {where}; this checkout has no such test")
        elif wanted != came:
            num_astray += 1
            lines.append(f"astray     {where}; expected {wanted}")
        else:
            count[f"{came}, {'tests' if each.is_test else 'other actions'}"] += 1
            simulated = ", simulated" if worker and worker.simulated else ""
            tries = f", at attempt {each.tries}" if each.tries > 1 else ""
            if every or each.is_test:
                lines.append(f"right      {where}{simulated}{tries}")
    lines += [f"{number:6d} in {what}" for what, number in sorted(count.items())]
    if unknown:
        lines.append(f"{unknown:6d} of targets that this checkout does not know")
    if not count and not num_astray:
        lines.append(
            "nothing ran that could be compared. hint: ./bazelw test --config=remote --nocache_test_results ..."
        )
        return lines, 1
    lines.append("all of them where they belong" if not num_astray else f"{num_astray} astray")
    return lines, num_astray


def query(root: Path, labels: Iterable[str]) -> list[str]:
    """What Bazel says of some targets; those that it does not know are left out."""
    options = ("--keep_going", "--output=streamed_jsonproto", "--noproto:default_values")
    attributes = "--proto:output_rule_attrs=tags,tests,env,exec_properties"
    quiet = ("--noshow_progress", "--ui_event_filters=-info,-warning,-error")
    with tempfile.NamedTemporaryFile("w", suffix=".query") as file:
        file.write(" + ".join(f'"{label}"' for label in labels))
        file.flush()
        command = ["./bazelw", "query", f"--query_file={file.name}", *options, attributes, *quiet]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    # 3 is what --keep_going makes of a label that is not there.
    if done.returncode not in (0, 3):
        raise SystemExit(f"./bazelw query failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return done.stdout.splitlines()


def main(words: list[str]) -> int:
    """Prints what ran where; fails if something was not where it belongs."""
    parser = argparse.ArgumentParser(description="Which action ran on which worker, and whether it belongs there.")
    parser.add_argument("--state", type=Path, default=cache() / "pools", help="of the cluster (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="a line for each action, and not for tests alone")
    arguments = parser.parse_args(words)
    root = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    state = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), arguments.state.expanduser()).resolve()
    jobs: list[Ran] | None = None
    rows: list[Worker] = []
    if (state / "cluster.json").exists():
        layout, rows = described(state)
        jobs = ran(layout)
    if jobs is None:
        print(f"pools: no cluster runs in {state}. hint: ./bazelw run //tools/pools:up", file=sys.stderr)
        return UNAVAILABLE
    labels = sorted({plain(each.target) for each in jobs if plain(each.target).startswith("//")})
    told = query(root, labels) if labels else []
    names = starlark((root / TABLE).read_text(encoding="utf-8"))
    lines, num_astray = report(jobs, rows, targets_of(told), sent(told), names, every=arguments.all)
    print("\n".join(lines))
    return 1 if num_astray else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
