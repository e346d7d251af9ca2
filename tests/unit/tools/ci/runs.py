"""Event files and reports as Bazel and the runner write them, of runs that never happened."""

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

PASS, SKIP = "", "<skipped/>"


def fail(message: str) -> str:
    """The inside of a case that failed."""
    return f"<failure message={quoteattr(message)}>trace</failure>"


class Run:
    """A run in a folder; targets are added one by one, and `write` makes the event file."""

    def __init__(self, folder: Path) -> None:
        """Starts with no target."""
        self.folder = folder
        self.events: list[dict[str, Any]] = [{"id": {"started": {}}, "started": {}}]

    def configured(self, label: str, size: str | None = "SMALL") -> None:
        """A target that Bazel got to know; one without a size is no test."""
        about = {"targetKind": "py_test rule", **({"testSize": size} if size else {})}
        self.events.append({"id": {"targetConfigured": {"label": label}}, "configured": about})

    def result(
        self, label: str, cases: dict[str, str] | None, *, shard: int = 1, attempt: int = 1, cached: bool = False
    ) -> None:
        """The result of one shard, with a report of these cases, or without one if there are none to give."""
        outputs = []
        if cases is not None:
            path = self.folder / f"logs of {label.replace('/', '_')}" / f"{shard}_{attempt}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            inside = "".join(f"<testcase name={quoteattr(name)}>{end}</testcase>" for name, end in cases.items())
            path.write_text(f"<testsuites><testsuite>{inside}</testsuite></testsuites>")
            outputs.append({"name": "test.xml", "uri": path.as_uri()})
        identity = {"label": label, "run": 1, "shard": shard, "attempt": attempt}
        result = {"testActionOutput": outputs, **({"cachedLocally": True} if cached else {})}
        self.events.append({"id": {"testResult": identity}, "testResult": result})

    def summary(self, label: str, status: str) -> None:
        """What Bazel says of all shards and attempts together."""
        self.events.append({"id": {"testSummary": {"label": label}}, "testSummary": {"overallStatus": status}})

    def test(self, label: str, cases: dict[str, str] | None, status: str = "PASSED", *, cached: bool = False) -> None:
        """A whole target: known, run once and summed up."""
        self.configured(label)
        self.result(label, cases, cached=cached)
        self.summary(label, status)

    def skipped(self, label: str, why: str) -> None:
        """A target that this platform cannot run."""
        self.configured(label)
        aborted = {"reason": "SKIPPED", "description": why}
        self.events.append({"id": {"targetCompleted": {"label": label}}, "aborted": aborted})

    def write(self, *, code: int = 0, name: str = "SUCCESS", finished: bool = True) -> Path:
        """The event file, whole or as a run leaves it that was killed."""
        end = {
            "id": {"buildFinished": {}},
            "finished": {"exitCode": {"name": name, **({"code": code} if code else {})}},
        }
        lines = [json.dumps(event) for event in [*self.events, *([end] if finished else [])]]
        path = self.folder / "events.json"
        path.write_text("\n".join(lines) + ("\n" if finished else '\n{"id": {"prog'))
        return path
