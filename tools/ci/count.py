"""How many test cases of a Bazel run passed and failed, from its event file and the files that it names.

Anything that could hide a case counts as one failure (tools/ci/events.py says what), and so do a tier or an accelerator
that ran nothing and a smoke cell that should have been proven and was not. A target that this machine cannot run is
listed as unproven, with Bazel's reason. The last line is `N passed, N failed`, and the exit code is 0 only if nothing
failed.

Usage: python -m tools.ci.count EVENTS [--expect TIER_OR_ACCELERATOR]...
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tools.ci.events import Result
from tools.ci.last_run import read_run


def report(results: Iterable[Result]) -> tuple[str, int]:
    """The text to print and the number of failures; a run in which nothing passed or failed is one."""
    tiers: dict[str, list[Result]] = {}
    for result in results:
        tiers.setdefault(result.tier, []).append(result)
    lines = [f"{'tier':<12}{'targets':>9}{'cached':>9}{'passed':>9}{'failed':>9}{'skipped':>9}"]
    details = []
    for tier, members in tiers.items():
        counts = (
            sum(each.label.startswith("//") for each in members),
            sum(each.cached for each in members),
            sum(each.num_passed for each in members),
            sum(len(each.failed) for each in members),
            sum(each.num_skipped for each in members),
        )
        lines.append(f"{tier:<12}" + "".join(f"{count:>9}" for count in counts))
        details += [f"failed    {each.label}: {reason}" for each in members for reason in each.failed]
        details += [f"unproven  {each.label}: {each.unproven}" for each in members if each.unproven]
    everything = [result for members in tiers.values() for result in members]
    num_passed, num_failed = (sum(each.num_passed for each in everything), sum(len(each.failed) for each in everything))
    if not num_passed and not num_failed:
        details.append("failed    no test ran")
        num_failed = 1
    return "\n".join([*lines, *details, f"{num_passed} passed, {num_failed} failed"]), num_failed


def main(arguments: list[str]) -> int:
    """Prints the report of an event file; 0 if nothing failed."""
    parser = argparse.ArgumentParser(description="Counts the test cases of a Bazel run.")
    parser.add_argument("events", type=Path, help="what --build_event_json_file wrote")
    parser.add_argument(
        "--expect", action="append", default=[], metavar="WORD", help="a tier or accelerator that must have run a test"
    )
    options = parser.parse_args(arguments)
    text, num_failed = report(read_run(options.events, options.expect).results)
    print(text)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
