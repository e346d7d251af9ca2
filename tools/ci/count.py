"""How many test cases of a Bazel run passed and failed, from its event file and the JUnit files that it names.

Targets are what Bazel counts; cases are what somebody claimed. Anything that could hide a case counts as one failure: a
target that failed without a failed case, a report that is missing, a run that ended early, a tier that ran nothing.
A target that this machine cannot run is listed as unproven, with Bazel's reason. The last line is `N passed, N failed`,
and the exit code is 0 only if nothing failed.

Usage: count.py EVENTS [--expect TIER]...
"""

import argparse
import json
import sys
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]

#: Bazel's exit codes after which the event file tells the whole story: success, tests failed, no test found.
COMPLETE = (0, 3, 4)


@dataclass
class Verdict:
    """What one target proved: numbers of cases, and the reason for everything that is not a pass."""

    label: str
    num_passed: int = 0
    num_skipped: int = 0
    cached: bool = False
    failed: list[str] = field(default_factory=list)
    unproven: str = ""

    @property
    def tier(self) -> str:
        """Where the target lives is what it is for: //tests/unit/... is unit, //tools/lint is lint."""
        folders = self.label.removeprefix("//").partition(":")[0].split("/")
        return folders[1] if folders[0] in ("tests", "tools") and len(folders) > 1 else folders[0]


def read_events(path: Path) -> list[Event]:
    """The events of a run, one JSON object a line, up to a line that was cut off: the run is then incomplete."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def verdicts_of(events: Iterable[Event]) -> list[Verdict]:
    """One verdict for each test target, sorted, and one for Bazel itself if it did not finish in good order."""
    events = list(events)
    tests = {label for event in events if "testSize" in event.get("configured", {}) for label in _labels(event)}
    found = {label: Verdict(label) for label in sorted(tests)}
    latest: dict[tuple[str, int, int], tuple[int, Event]] = {}
    statuses: dict[str, str] = {}
    for event in events:
        for label in _labels(event):
            identity = event["id"]
            if "testResult" in event:
                key = (label, identity["testResult"].get("run", 1), identity["testResult"].get("shard", 1))
                attempt = identity["testResult"].get("attempt", 1)
                if attempt >= latest.get(key, (0, {}))[0]:
                    latest[key] = attempt, event["testResult"]
            elif "testSummary" in event:
                statuses[label] = event["testSummary"].get("overallStatus", "NO_STATUS")
            elif event.get("aborted", {}).get("reason") == "SKIPPED":
                found.setdefault(label, Verdict(label)).unproven = event["aborted"].get(
                    "description", "skipped by Bazel"
                )
    for (label, _, _), (_, result) in latest.items():
        _add_cases(found.setdefault(label, Verdict(label)), result)
    for label, verdict in found.items():
        _judge(verdict, statuses.get(label, "BUILD OR ANALYSIS FAILED"))
    return [*(found[label] for label in sorted(found)), *_of_bazel(events, any(each.failed for each in found.values()))]


def _labels(event: Event) -> list[str]:
    """The label that an event is about, if it is about a target."""
    return [value["label"] for value in event.get("id", {}).values() if isinstance(value, dict) and "label" in value]


def _add_cases(verdict: Verdict, result: Event) -> None:
    """Adds the cases of one shard's report; a report that cannot be read is a failure, since it may hide anything."""
    verdict.cached = bool(result.get("cachedLocally") or result.get("executionInfo", {}).get("cachedRemotely"))
    addresses = [each.get("uri", "") for each in result.get("testActionOutput", []) if each.get("name") == "test.xml"]
    try:
        report = ElementTree.parse(_path(addresses[0])) if addresses else None
    except (OSError, ElementTree.ParseError) as error:
        verdict.failed.append(f"its report cannot be read: {error}")
        return
    for case in report.iter("testcase") if report is not None else ():
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        if problem is not None:
            first_line = (problem.get("message") or problem.text or "no message").strip().splitlines()[0]
            verdict.failed.append(f"{case.get('name')}: {first_line}")
        elif case.find("skipped") is not None:
            verdict.num_skipped += 1
        else:
            verdict.num_passed += 1


def _path(address: str) -> Path:
    """The local file of a file: address. Reports that stayed on another machine do not have one.

    Raises:
        OSError: the address is not a file's.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "file":
        raise OSError(f"{address} is not on this machine")
    return Path(urllib.request.url2pathname(parts.path))


def _judge(verdict: Verdict, status: str) -> None:
    """Turns a target red that would otherwise look green, or absent, without having proven anything."""
    if verdict.unproven or verdict.failed:
        return
    if status not in ("PASSED", "FLAKY"):
        verdict.failed.append(f"{status.replace('_', ' ').lower()}, without a failed case")
    elif not verdict.num_passed:
        verdict.failed.append("passed, without a passed case")


def _of_bazel(events: list[Event], explained: bool) -> list[Verdict]:
    """A failed verdict if Bazel stopped early, or failed in a way that no target explains."""
    finished = next((event["finished"] for event in events if "finished" in event), None)
    if finished is None:
        return [Verdict("bazel", failed=["the run ended before its events did"])]
    code = finished.get("exitCode", {})
    if code.get("code", 0) in COMPLETE or explained:
        return []
    return [Verdict("bazel", failed=[f"exit {code['code']}: {code.get('name', 'unknown')}"])]


def report(verdicts: list[Verdict], expected: Iterable[str] = ()) -> tuple[str, int]:
    """The text to print and the number of failures; an expected tier in which no case passed or failed is one more."""
    tiers: dict[str, list[Verdict]] = {tier: [] for tier in expected}
    for verdict in verdicts:
        tiers.setdefault(verdict.tier, []).append(verdict)
    lines = [f"{'tier':<12}{'targets':>9}{'cached':>9}{'passed':>9}{'failed':>9}{'skipped':>9}"]
    details = []
    for tier, members in tiers.items():
        if tier in expected and not any(each.num_passed or each.failed for each in members):
            members.append(Verdict(tier, failed=["expected, and no test of it ran"]))
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
    everything = [verdict for members in tiers.values() for verdict in members]
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
        "--expect", action="append", default=[], metavar="TIER", help="a tier that must have run a test"
    )
    options = parser.parse_args(arguments)
    try:
        verdicts = verdicts_of(read_events(options.events))
    except OSError as error:
        verdicts = [Verdict("bazel", failed=[f"there is no event file: {error}"])]
    text, num_failed = report(verdicts, options.expect)
    print(text)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
