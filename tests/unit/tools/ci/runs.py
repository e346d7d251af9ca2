"""Event files and reports as Bazel and the runner write them, of runs that never happened."""

import json
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from tests.unit.tools.ci.smoke_files import verdict

PASS, SKIP = "", "<skipped/>"


def fail(message: str) -> str:
    """The inside of a case that failed."""
    return f"<failure message={quoteattr(message)}>trace</failure>"


class Run:
    """A run in a folder; targets are added one by one, and `write` makes the event file."""

    def __init__(self, folder: Path) -> None:
        """Starts with no target."""
        self.folder = folder
        started = {"command": "test", "startTimeMillis": "1795565068827"}
        self.events: list[dict[str, Any]] = [{"id": {"started": {}}, "started": started}]

    def asked(self, *patterns: str, options: tuple[str, ...] = ()) -> None:
        """What stood on the command line."""
        self.events.append({"id": {"optionsParsed": {}}, "optionsParsed": {"cmdLine": list(options)}})
        self.events.append({"id": {"pattern": {"pattern": list(patterns)}}, "expanded": {}})

    def built(self, label: str, *files: Path) -> None:
        """A target that made files, which Bazel lists in a set within a set."""
        inner, outer = f"{label} inner", f"{label} outer"
        made = [{"name": path.name, "uri": path.as_uri()} for path in files]
        self.events.append({"id": {"namedSet": {"id": inner}}, "namedSetOfFiles": {"files": made}})
        self.events.append({"id": {"namedSet": {"id": outer}}, "namedSetOfFiles": {"fileSets": [{"id": inner}]}})
        groups = [{"name": "default", "fileSets": [{"id": outer}]}]
        self.events.append({"id": {"targetCompleted": {"label": label}}, "completed": {"outputGroup": groups}})

    def configured(self, label: str, size: str | None = "SMALL", tags: tuple[str, ...] = ()) -> None:
        """A target that Bazel got to know; one without a size is no test."""
        about = {"targetKind": "py_test rule", "tag": list(tags), **({"testSize": size} if size else {})}
        self.events.append({"id": {"targetConfigured": {"label": label}}, "configured": about})

    def result(
        self,
        label: str,
        cases: dict[str, str] | None,
        *,
        shard: int = 1,
        attempt: int = 1,
        cached: bool = False,
        seconds: float = 1.0,
        left: dict[str, str] | None = None,
        packed: bool = False,
        log: str = "",
    ) -> None:
        """The result of one shard, with a report of these cases, or without one if there are none to give.

        What it left behind (`left`: path -> text) is a folder or, `packed`, an archive, as Bazel's option has it.
        """
        outputs = []
        folder = self.folder / f"logs of {label.replace('/', '_')}"
        folder.mkdir(parents=True, exist_ok=True)
        if cases is not None:
            path = folder / f"{shard}_{attempt}.xml"
            inside = "".join(f"<testcase name={quoteattr(name)}>{end}</testcase>" for name, end in cases.items())
            path.write_text(f"<testsuites><testsuite>{inside}</testsuite></testsuites>")
            outputs.append({"name": "test.xml", "uri": path.as_uri()})
        if log:
            (folder / f"{shard}_{attempt}.log").write_text(log)
            outputs.append({"name": "test.log", "uri": (folder / f"{shard}_{attempt}.log").as_uri()})
        if left is not None:
            outputs.append(_left(folder / f"outputs_{shard}_{attempt}", left, packed))
        identity = {"label": label, "run": 1, "shard": shard, "attempt": attempt}
        result = {"testActionOutput": outputs, "testAttemptDuration": f"{seconds:.3f}s"}
        if cached:
            result["cachedLocally"] = True
        self.events.append({"id": {"testResult": identity}, "testResult": result})

    def summary(self, label: str, status: str) -> None:
        """What Bazel says of all shards and attempts together."""
        self.events.append({"id": {"testSummary": {"label": label}}, "testSummary": {"overallStatus": status}})

    def test(self, label: str, cases: dict[str, str] | None, status: str = "PASSED", **about: Any) -> None:
        """A whole target: known, run once and summed up. `about` is what `result` takes."""
        self.configured(label)
        self.result(label, cases, **about)
        self.summary(label, status)

    def skipped(self, label: str, why: str, tags: tuple[str, ...] = ()) -> None:
        """A target that this platform cannot run."""
        self.configured(label, tags=tags)
        aborted = {"reason": "SKIPPED", "description": why}
        self.events.append({"id": {"targetCompleted": {"label": label}}, "aborted": aborted})

    def write(self, *, code: int = 0, name: str = "SUCCESS", finished: bool = True) -> Path:
        """The event file, whole or as a run leaves it that was killed."""
        end = {
            "id": {"buildFinished": {}},
            "finished": {
                "exitCode": {"name": name, **({"code": code} if code else {})},
                "finishTimeMillis": "1795565131827",
            },
        }
        lines = [json.dumps(event) for event in [*self.events, *([end] if finished else [])]]
        path = self.folder / "events.json"
        path.write_text("\n".join(lines) + ("\n" if finished else '\n{"id": {"prog'))
        return path


class Smoke(Run):
    """A run that is asked for everything, and so for the cells of this matrix."""

    def __init__(self, folder: Path, *cells: dict[str, Any]) -> None:
        """Builds the matrix."""
        super().__init__(folder)
        self.asked("//...")
        matrix = folder / "matrix.json"
        matrix.write_text(json.dumps({"schema": 1, "cells": cells}))
        self.built("//tests/smoke:matrix", matrix)

    def cell(self, cell: dict[str, Any], raw: str | None = None, **about: Any) -> None:
        """Runs a cell's target, which leaves this verdict."""
        left = {"verdict.json": verdict(cell) if raw is None else raw}
        self.test(cell["target"], {"test_cell": PASS}, left=left, **about)


def _left(folder: Path, left: dict[str, str], packed: bool) -> dict[str, str]:
    """Undeclared outputs, and the event's words for them."""
    for name, text in left.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if not packed:
        return {"name": "test.outputs", "uri": folder.as_uri()}
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for name in left:
            archive.write(folder / name, name)
    return {"name": "test.outputs__outputs.zip", "uri": folder.with_suffix(".zip").as_uri()}
