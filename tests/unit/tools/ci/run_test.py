import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tools.ci.runs import PASS, Run, fail
from tools.ci import cells, count, events, last_run

SCRIPT = Path(__file__).parents[4] / ".ci/run"


class Checkout:
    """A folder with .ci/run, the counter, and a bazelw that does as it is told and remembers its arguments."""

    def __init__(self, root: Path) -> None:
        """Lays out the files."""
        self.root = root
        for folder in (".ci", "tools/ci", "bin"):
            (root / folder).mkdir(parents=True)
        shutil.copy(SCRIPT, root / ".ci/run")
        for module in (cells, count, events, last_run):
            shutil.copy(str(module.__file__), root / "tools/ci")
        self.python(f'exec "{sys.executable}" "$@"')
        self.bazelw("exit 37")

    def bazelw(self, commands: str) -> None:
        """Replaces bazelw by these shell commands."""
        self._script("bazelw", f'echo "$@" >> calls\n{commands}\n')

    def python(self, commands: str) -> None:
        """Replaces the python3.11 on PATH by these shell commands."""
        self._script("bin/python3.11", commands)

    def _script(self, name: str, commands: str) -> None:
        (self.root / name).write_text(f"#!/bin/sh\n{commands}\n")
        (self.root / name).chmod(0o755)

    def reporting(self, commands: str, *, without_python: bool = False) -> None:
        """Replaces bazelw by these shell commands, before which it makes a report, and counts if it is asked to."""
        make = "mkdir -p .plumbline/report; echo page > .plumbline/report/index.html; exit 0"
        report = f'[ "$3" = //tools/ci:report ] && {{ {make}; }}\n[ "$3" = //tools/ci:audit ] && exit 0'
        count = f'[ "$3" = //tools/ci:count ] && shift 4 && exec "{sys.executable}" -m tools.ci.count "$@"'
        self.bazelw(f"{report}\n{count if without_python else ''}\n{commands}")

    def run(self, *tiers: str) -> tuple[int, list[str]]:
        """The exit code and the lines of standard output, started from another folder."""
        path = os.pathsep.join([str(self.root / "bin"), "/usr/bin", "/bin"])
        command = [str(self.root / ".ci/run"), *tiers]
        finished = subprocess.run(
            command,
            cwd="/",
            env={"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        return finished.returncode, finished.stdout.splitlines()

    def calls(self) -> list[str]:
        """What bazelw was called with, one call a line."""
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def prepared(folder: Path, *, red: bool = False) -> str:
    """The shell commands of a Bazel that runs one test in each expected tier."""
    folder.mkdir()
    run = Run(folder)
    for package in ("tools/lint", "tests/unit", "tests/subsystem", "tests/negative", "tests/smoke"):
        run.test(f"//{package}:a", {"test_one": PASS})
    if red:
        run.test("//tests/unit:b", {"test_two": fail("wrong")}, "FAILED")
    events = run.write(code=3 if red else 0)
    return f'cp "{events}" .plumbline/events.json\nexit {3 if red else 0}'


EXPECTED = "--expect lint --expect unit --expect subsystem --expect negative --expect smoke"
AUDIT = "run --config=ci //tools/ci:audit -- --no-routes"
REPORT = f"run --config=ci //tools/ci:report -- {EXPECTED}"


def test_a_green_run_ends_with_the_count(checkout: Checkout, tmp_path: Path) -> None:
    checkout.reporting(prepared(tmp_path / "made"))
    code, lines = checkout.run()
    assert (code, lines[-1]) == (0, "5 passed, 0 failed")
    assert not any("no report" in line for line in lines)
    assert checkout.calls() == ["test //... --config=ci", AUDIT, REPORT]


def test_some_tiers_are_run_by_the_same_road(checkout: Checkout, tmp_path: Path) -> None:
    checkout.reporting(prepared(tmp_path / "made"))
    code, lines = checkout.run("lint", "unit")
    assert (code, lines[-1]) == (0, "5 passed, 0 failed")
    expected = "--expect lint --expect unit"
    assert checkout.calls() == [
        "test //tools/lint/... //tests/unit/... --config=ci",
        f"run --config=ci //tools/ci:report -- {expected}",
    ]
    assert checkout.run("benchmark")[1][-1] == "5 passed, 1 failed"


def test_a_red_audit_is_one_failure_more(checkout: Checkout, tmp_path: Path) -> None:
    audit = f'[ "$*" = "{AUDIT}" ] && exit 1'
    checkout.bazelw(f"{audit}\n{prepared(tmp_path / 'made')}")
    code, lines = checkout.run()
    assert (code, lines[-2:]) == (1, ["the audit is red: see above", "5 passed, 1 failed"])


def test_a_report_that_is_not_made_is_said_and_hides_nothing(checkout: Checkout, tmp_path: Path) -> None:
    checkout.reporting(prepared(tmp_path / "made", red=True))
    checkout.run()
    checkout.bazelw(f'[ "$1" = run ] && echo broken && exit 1\n{prepared(tmp_path / "again", red=True)}')
    code, lines = checkout.run()
    assert code == 1
    assert "no report was made: see above" in lines
    assert "failed    //tests/unit:b: test_two: wrong" in lines
    assert lines[-2:] == ["the audit is red: see above", "5 passed, 2 failed"]


def test_a_red_run_ends_with_the_count(checkout: Checkout, tmp_path: Path) -> None:
    checkout.reporting(prepared(tmp_path / "made", red=True))
    code, lines = checkout.run()
    assert (code, lines[-1]) == (1, "5 passed, 1 failed")


def test_a_bazel_that_does_not_start_is_counted_as_a_failure(checkout: Checkout) -> None:
    code, lines = checkout.run()
    assert code == 1
    assert lines[-1] == "0 passed, 7 failed"


def test_the_events_of_an_earlier_run_answer_for_nothing(checkout: Checkout, tmp_path: Path) -> None:
    checkout.bazelw(prepared(tmp_path / "made"))
    checkout.run()
    checkout.bazelw("exit 37")
    assert checkout.run()[1][-1] == "0 passed, 7 failed"


def test_without_a_python_on_path_bazel_runs_the_counter(checkout: Checkout, tmp_path: Path) -> None:
    checkout.python("exit 127")
    checkout.reporting(prepared(tmp_path / "made"), without_python=True)
    code, lines = checkout.run()
    assert (code, lines[-1]) == (0, "5 passed, 0 failed")
    assert checkout.calls()[1].startswith("run --config=ci //tools/ci:count -- ")


def test_a_counter_that_does_not_start_is_a_failure(checkout: Checkout, tmp_path: Path) -> None:
    checkout.python("exit 127")
    checkout.bazelw(prepared(tmp_path / "made"))
    code, lines = checkout.run()
    assert (code, lines[-2:]) == (1, ["the tests were not counted", "0 passed, 1 failed"])
