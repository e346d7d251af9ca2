"""What a Bazel run says of itself: its event file, and the files that it names, as one Result for each test target.

Targets are what Bazel counts; cases are what somebody claimed. Anything that could hide a case counts as one failure: a
target that failed without a failed case, a report that is missing, a run that ended early. What failed before a test
could say anything is told apart from what a test said: the first is the machine or the build, the second the code.
"""

import json
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.ci.cells import accelerator_of

Event = dict[str, Any]

#: Bazel's exit codes after which the event file tells the whole story: success, tests failed, no test found.
COMPLETE = (0, 3, 4)

#: What Bazel says of a test that itself got to say something. All else is about the machine or the build.
TEST_STATUSES = ("PASSED", "FLAKY", "FAILED", "TIMEOUT")

#: How a run ended that somebody stopped, and so what is said of each test that had not come to its end.
INTERRUPTED = "INTERRUPTED"

#: What a test left beside its report, as a folder or packed.
UNDECLARED = ("test.outputs", "test.outputs__outputs.zip")

#: The option that leaves targets out of a run by their tags.
TAG_FILTER = "--test_tag_filters"

#: Options that leave targets out by what no cell of the matrix says of itself.
FILTERS = ("--test_size_filters", "--test_timeout_filters", "--test_lang_filters")

#: Names that stand for all targets of a package.
WILD = ("all", "all-targets", "*")

#: The tag of what a pattern with dots leaves out.
MANUAL = "manual"


@dataclass(frozen=True)
class Failure:
    """One reason why something is not a pass, with the test case that gave it, if one did."""

    reason: str
    case: str = ""
    trace: str = ""
    infrastructure: bool = False

    def __str__(self) -> str:
        """The case, where there is one, and the reason."""
        return f"{self.case}: {self.reason}" if self.case else self.reason


@dataclass
class Result:
    """What one target proved: numbers of cases, and the reason for everything that is not a pass."""

    label: str
    num_passed: int = 0
    num_skipped: int = 0
    num_attempts: int = 1
    seconds: float = 0.0
    cached: bool = False
    flaky: bool = False
    failed: list[Failure] = field(default_factory=list)
    unproven: str = ""
    reports: list[Path] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    ran: list[tuple[float, float]] = field(default_factory=list)
    """When each of its shards began and ended, in seconds since 1970; nothing that the cache answered for."""
    outputs: list[Path] = field(default_factory=list)

    @property
    def tier(self) -> str:
        """Where the target lives is what it is for: //tests/unit/... is unit, //tools/lint is lint."""
        folders = self.label.removeprefix("//").partition(":")[0].split("/")
        return folders[1] if folders[0] in ("tests", "tools") and len(folders) > 1 else folders[0]

    @property
    def accelerator(self) -> str:
        """What the target asks for, which ends the name of one that asks for more than a cpu."""
        return accelerator_of(self.label)


@dataclass(frozen=True)
class Build:
    """The run itself: what was asked for, when, and how it ended."""

    command: str = ""
    patterns: tuple[str, ...] = ()
    suites: dict[str, frozenset[str]] = field(default_factory=dict)
    """The tests of each suite that a pattern names."""
    tag_filters: tuple[str, ...] = ()
    """Tags of which a test needs one, and with a `-` those that it must not have."""
    filtered: bool = False
    """True if tests were left out by something else, so that nobody can say which."""
    started_ms: int = 0
    seconds: float = 0.0
    ending: str = "cut off"

    def asks_for(self, label: str, tags: frozenset[str]) -> bool:
        """True if the command covers a test: by patterns, of which a later one decides and `-` takes away, and by tags.

        What is manual is covered by its name alone, or by a suite's.
        """
        asked = False
        for pattern in self.patterns:
            name = pattern.removeprefix("-")
            by_name = _covers(name, label) and (MANUAL not in tags or not _is_wild(name))
            if by_name or label in self.suites.get(_whole(name), ()):
                asked = not pattern.startswith("-")
        return asked and not self.filtered and self._lets_through(tags)

    def _lets_through(self, tags: frozenset[str]) -> bool:
        without = {each.removeprefix("-") for each in self.tag_filters if each.startswith("-")}
        with_one_of = {each for each in self.tag_filters if not each.startswith("-")}
        return not tags & without and (not with_one_of or bool(tags & with_one_of))


def read_events(path: Path) -> list[Event]:
    """The events of a run, one JSON object a line, up to a line that was cut off: the run is then incomplete."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def build_of(events: Iterable[Event]) -> Build:
    """What the events say of the run as a whole."""
    told: dict[str, Any] = {}
    patterns: list[str] = []
    options: list[str] = []
    suites: dict[str, frozenset[str]] = {}
    for event in events:
        for suite in event.get("expanded", {}).get("testSuiteExpansions", []):
            suites[suite["suiteLabel"]] = frozenset(suite.get("testLabels", []))
        patterns += event["id"].get("pattern", {}).get("pattern", []) if "id" in event else []
        options += event.get("optionsParsed", {}).get("cmdLine", [])
        told.update({name: event[name] for name in ("started", "finished") if name in event})
    filters = [option.partition("=")[2] for option in options if option.split("=")[0] == TAG_FILTER]
    started, finished = told.get("started", {}), told.get("finished")
    started_ms = int(started.get("startTimeMillis", 0))
    finished_ms = int((finished or {}).get("finishTimeMillis", started_ms))
    return Build(
        command=" ".join(["bazel", started["command"], *patterns]) if "command" in started else "",
        patterns=tuple(patterns),
        suites=suites,
        # Of an option that is given twice the last holds.
        tag_filters=tuple(filter(None, filters[-1].split(","))) if filters else (),
        filtered=any(option.split("=")[0] in FILTERS for option in options),
        started_ms=started_ms,
        seconds=(finished_ms - started_ms) / 1000,
        ending=finished.get("exitCode", {}).get("name", "unknown") if finished is not None else "cut off",
    )


def outputs_of(events: Iterable[Event], label: str) -> list[Path]:
    """The files of this machine that building a target made, as the events name them."""
    sets: dict[str, Event] = {}
    roots: list[str] = []
    for event in events:
        if "namedSetOfFiles" in event:
            sets[event["id"]["namedSet"]["id"]] = event["namedSetOfFiles"]
        elif "completed" in event and label in _labels(event):
            groups = event["completed"].get("outputGroup", [])
            roots += [each["id"] for group in groups for each in group.get("fileSets", [])]
    found: list[Path] = []
    for name in roots:  # It grows while it is read: a set holds files and further sets.
        inside = sets.get(name, {})
        found += [_path(each["uri"]) for each in inside.get("files", []) if each.get("uri", "").startswith("file:")]
        roots += [each["id"] for each in inside.get("fileSets", []) if each["id"] not in roots]
    return found


def results_of(events: Iterable[Event]) -> list[Result]:
    """One result for each test target, sorted, and one for Bazel itself if it did not finish in good order."""
    events = list(events)
    tests = {
        label: event["configured"].get("tag", [])
        for event in events
        if "testSize" in event.get("configured", {})
        for label in _labels(event)
    }
    found = {label: Result(label) for label in sorted(tests)}
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
                found.setdefault(label, Result(label)).unproven = _why_skipped(tests.get(label, []), event["aborted"])
    for (label, _, _), (attempt, told) in latest.items():
        result = found.setdefault(label, Result(label))
        result.num_attempts = max(result.num_attempts, attempt)
        _add_shard(result, told)
    unsaid = INTERRUPTED if build_of(events).ending == INTERRUPTED else "BUILD OR ANALYSIS FAILED"
    for label, result in found.items():
        result.flaky = statuses.get(label) == "FLAKY"
        _judge(result, statuses.get(label, unsaid), events)
    return [*(found[label] for label in sorted(found)), *_of_bazel(events, any(each.failed for each in found.values()))]


def _why_skipped(tags: list[str], aborted: Event) -> str:
    """What a target needs and this machine lacks: Bazel says only that it skipped it, the macro's tags say why."""
    needs = [tag for tag in tags if tag.startswith("gpu-")]
    needs += [tag.removeprefix("needs:") for tag in tags if tag.startswith("needs:")]
    return f"no {' or '.join(needs)} here" if needs else aborted.get("description", "skipped by Bazel")


def _covers(pattern: str, label: str) -> bool:
    """True if one target pattern, as Bazel reads it, names a label of the form //package:name."""
    package, _, name = label.removeprefix("//").partition(":")
    wanted, colon, wanted_name = pattern.removeprefix("//").partition(":")
    if wanted == "..." or wanted.endswith("/..."):
        below = wanted.removesuffix("...").removesuffix("/")
        return not below or package == below or package.startswith(f"{below}/")
    if colon and wanted_name in WILD:
        return package == wanted
    return f"//{package}:{name}" == _whole(pattern)


def _is_wild(pattern: str) -> bool:
    """True if a pattern is for whatever is there."""
    return pattern.endswith("...") or pattern.rpartition(":")[2] in WILD


def _whole(pattern: str) -> str:
    """The label that a pattern without a wildcard names."""
    return pattern if ":" in pattern else f"{pattern}:{pattern.rpartition('/')[2]}"


def _labels(event: Event) -> list[str]:
    """The label that an event is about, if it is about a target."""
    return [value["label"] for value in event.get("id", {}).values() if isinstance(value, dict) and "label" in value]


def _add_shard(result: Result, told: Event) -> None:
    """Adds the cases and files of one shard; a report that cannot be read is a failure, since it may hide anything."""
    result.cached = bool(told.get("cachedLocally") or told.get("executionInfo", {}).get("cachedRemotely"))
    seconds = float(str(told.get("testAttemptDuration", "0s")).removesuffix("s"))
    result.seconds += seconds
    began = int(told.get("testAttemptStartMillisEpoch", 0)) / 1000
    if began and not result.cached:
        result.ran.append((began, began + seconds))
    try:
        files = {each.get("name"): _path(each.get("uri", "")) for each in told.get("testActionOutput", [])}
        if "test.xml" in files:
            _add_cases(result, ElementTree.parse(files["test.xml"]))
            result.reports.append(files["test.xml"])
    except (OSError, ElementTree.ParseError) as error:
        result.failed.append(Failure(f"its report cannot be read: {error}", infrastructure=True))
        return
    result.logs += [path for name, path in files.items() if name == "test.log"]
    result.outputs += [path for name, path in files.items() if name in UNDECLARED]


def _add_cases(result: Result, report: "ElementTree.ElementTree[Any]") -> None:
    for case in report.iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        if problem is not None:
            first_line = (problem.get("message") or problem.text or "no message").strip().splitlines()[0]
            trace, infrastructure = (problem.text or "").strip(), problem.get("type") == "infrastructure"
            result.failed.append(Failure(first_line, case.get("name", ""), trace, infrastructure))
        elif case.find("skipped") is not None:
            result.num_skipped += 1
        else:
            result.num_passed += 1


def _path(address: str) -> Path:
    """The local file of a file: address. Reports that stayed on another machine do not have one.

    Raises:
        OSError: the address is not a file's.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "file":
        raise OSError(f"{address} is not on this machine")
    return Path(urllib.request.url2pathname(parts.path))


def _judge(result: Result, status: str, events: list[Event]) -> None:
    """Turns a target red that would otherwise look green, or absent, without having proven anything."""
    if result.unproven or result.failed:
        return
    if status not in ("PASSED", "FLAKY"):
        words = status.replace("_", " ").lower()
        why = next(_complaints(events, result.label), "")
        reason = f"{words}: {why}" if why else f"{words}, without a failed case"
        result.failed.append(Failure(reason, infrastructure=status not in TEST_STATUSES))
    elif not result.num_passed:
        result.failed.append(Failure("passed, without a passed case"))


def _complaints(events: list[Event], label: str) -> Iterator[str]:
    """What Bazel itself says of a target that it could not build, the most telling first."""
    about = [event for event in events if label in _labels(event)]
    for event in about:
        if event.get("aborted", {}).get("description"):
            yield event["aborted"]["description"].strip().splitlines()[0]
    for event in about:
        message = event.get("completed", {}).get("failureDetail", {}).get("message")
        if message:
            yield message.strip().splitlines()[0]


def _of_bazel(events: list[Event], explained: bool) -> list[Result]:
    """A failed result if Bazel stopped early, or failed in a way that no target explains."""
    finished = next((event["finished"] for event in events if "finished" in event), None)
    if finished is None:
        return [of_bazel("the run ended before its events did")]
    code = finished.get("exitCode", {})
    if code.get("code", 0) in COMPLETE or explained:
        return []
    return [of_bazel(f"exit {code['code']}: {code.get('name', 'unknown')}")]


def of_bazel(reason: str) -> Result:
    """A result that stands for the run itself, failed."""
    return Result("bazel", failed=[Failure(reason, infrastructure=True)])
