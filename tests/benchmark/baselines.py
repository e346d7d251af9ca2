"""`./bazelw run //tests/benchmark:baselines`: holds the last results against baselines.json, or writes it anew.

    ./bazelw test //tests/benchmark:arithmetic_test --nocache_test_results
    ./bazelw run //tests/benchmark:baselines              # a line for each metric: old → new, and what the rule says
    ./bazelw run //tests/benchmark:baselines -- --write   # the same, and what was found becomes the baseline

Reads the verdicts below the folders that are named, by default those that the last `bazelw test` left.
"""

import argparse
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmark.rule import Comparison, compare, interval, spread
from tools.ci.cells import parse_verdict, verdicts_in

BASELINES = Path("tests/benchmark/baselines.json")
LOGS = Path("bazel-testlogs/tests/benchmark")
"""Where Bazel leaves the outputs of this tier, from the root of the repository."""
SCHEMA = 1
FILE = "benchmark.json"
"""A verdict of this tier; a verdict.json would be counted as a cell of the smoke matrix."""

MISSED_REWARD = "missed reward"
"""What a curve is of, where it is not of the loss: 1 less the mean reward of a step's completions."""

Verdict = dict[str, Any]
Baselines = dict[str, dict[str, Any]]
"""Cell → seeds, metrics, versions, hardware."""


def found_in(folders: Sequence[Path]) -> dict[str, list[Verdict]]:
    """The verdicts below the folders by cell, in the order of their seeds; of two for one seed, the later file's.

    Raises:
        BadFile: one of them is not a verdict.
    """
    by_seed: defaultdict[str, dict[int, Verdict]] = defaultdict(dict)
    for folder in folders:
        for where, raw in verdicts_in(folder, FILE):
            parse_verdict(raw, where)
            verdict = json.loads(raw)
            by_seed[verdict["benchmark"]][verdict["seed"]] = verdict
    return {cell: [seeds[seed] for seed in sorted(seeds)] for cell, seeds in sorted(by_seed.items())}


def write_verdict(content: Verdict, folder: Path) -> Path:
    """Writes the verdict into a folder of its own below the given one; returns its path."""
    path = folder / content["cell"]["name"] / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
    return path


def values(verdicts: Sequence[Verdict]) -> dict[str, list[float]]:
    """Each metric's values, one for each seed."""
    return {name: [each["metrics"][name] for each in verdicts] for name in sorted(verdicts[0]["metrics"])}


def entry(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What is checked in of a cell: the seeds' values, and what follows from them, for people to read."""
    last = verdicts[-1]
    return {
        "seeds": [each["seed"] for each in verdicts],
        "metrics": {
            name: {
                "mean": round(statistics.fmean(each), 6),
                "spread": round(spread(each), 6),
                "interval_95": [round(end, 6) for end in interval(each)],
                "values": [round(value, 6) for value in each],
            }
            for name, each in values(verdicts).items()
        },
        "versions": last["versions"],
        "hardware": last["hardware"],
    }


def comparisons(baseline: Mapping[str, Any], verdicts: Sequence[Verdict]) -> list[Comparison]:
    """Each metric by the rule. A metric that only one side has is an error of ours: somebody must refresh."""
    found = values(verdicts)
    assert found.keys() == baseline["metrics"].keys(), "the battery has changed. hint: write new baselines"
    return [compare(name, baseline["metrics"][name]["values"], each) for name, each in found.items()]


def read(path: Path) -> Baselines:
    """The checked-in baselines."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == SCHEMA, f"{path}: written by another version"
    cells: Baselines = content["cells"]
    return cells


def diff(baselines: Baselines, cell: str, verdicts: Sequence[Verdict]) -> str:
    """The table of one cell: what was, what is, and what the rule says of it."""
    seeds = ", ".join(str(each["seed"]) for each in verdicts)
    if cell not in baselines or baselines[cell]["metrics"].keys() != values(verdicts).keys():
        lines = [f"{name:<18} {'new':>10} → {statistics.fmean(each):10.4f}" for name, each in values(verdicts).items()]
    else:
        lines = [str(each) for each in comparisons(baselines[cell], verdicts)]
    return "\n".join([f"{cell} (seeds {seeds})", *(f"  {line}" for line in lines)])


def table(baselines: Baselines) -> str:
    """The baselines as a Markdown table: mean over seeds, and the 95 % interval of that mean."""
    names = sorted({name for cell in baselines.values() for name in cell["metrics"]})
    titles = [name.replace("_at_", "@").replace("_", " ") for name in names]
    lines = [f"| cell | seeds | {' | '.join(titles)} |", f"|---|---|{'---|' * len(names)}"]
    for cell, content in baselines.items():
        figures = []
        for name in names:
            metric = content["metrics"].get(name)
            low, high = metric["interval_95"] if metric else (0.0, 0.0)
            figures.append(f"{metric['mean']:.4f} ({low:.4f} to {high:.4f})" if metric else "")
        lines.append(f"| {cell} | {len(content['seeds'])} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the differences, and replaces baselines if asked to. Exits with 1 if a figure is another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="where verdicts lie (default: the last test's outputs)")
    parser.add_argument("--write", action="store_true", help="make what was found the baseline")
    arguments = parser.parse_args()
    root = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    here = Path(os.environ["BUILD_WORKING_DIRECTORY"])
    folders = [here / each for each in arguments.folders] or [root / LOGS]
    found = found_in(folders)
    if not found:
        print(f"no verdict below {', '.join(map(str, folders))}. hint: ./bazelw test //tests/benchmark:arithmetic_test")
        return 1
    path = root / BASELINES
    baselines = read(path) if path.exists() else {}
    for cell, verdicts in found.items():
        print(diff(baselines, cell, verdicts))
    if arguments.write:
        baselines |= {cell: entry(verdicts) for cell, verdicts in found.items()}
        write(baselines, path)
        print(f"wrote {BASELINES}; the table of docs/benchmark.md is now\n\n{table(read(path))}")
        return 0
    # A cell without a baseline is a difference too.
    same = all(
        cell in baselines and all(each.holds for each in comparisons(baselines[cell], verdicts))
        for cell, verdicts in found.items()
    )
    return 0 if same else 1


def write(baselines: Baselines, path: Path) -> None:
    """Writes the baselines, sorted, a line for each value's list."""
    content = {"schema": SCHEMA, "cells": dict(sorted(baselines.items()))}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
