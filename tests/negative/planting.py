"""Plants a bug in a copy of the sources and says whether its guard turns red, and for the right reason.

    copy the sources → plant → run the guard in a process of its own → read its report → judge

That process is a fork of one that has imported libraries, and nothing of ours (warm.py).

A guard that cannot fail proves nothing, and nobody would notice. So each bug here was made by somebody, or nearly, and
names the test that must see it. Red alone is not enough: a guard that cannot be imported any more is red too. What
counts is a test that ran and failed by an assertion, or by an error that the bug lists, as the JUnit file has it.

Standard library only: what a guard needs is its own target's business, and a bug's target holds all of that as data.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDERS = (".ci", "tests", "tools", "training")
"""What a copy holds of a checkout; of a Bazel target's files it holds everything."""

FAILED_BY_ASSERTION = re.compile(r"assert |AssertionError\b|Failed: DID NOT (RAISE|WARN)")
"""How pytest begins the message of a failed assertion: in short, with the exception's name, or on behalf of raises."""

SECONDS_MAX = 240
"""A bug may make its guard wait for ever."""

OF_THIS_TEST = ("TEST_", "TESTBRIDGE_", "PYTEST_", "RUNFILES_", "XML_OUTPUT_FILE", "PLUMBLINE_ROW")


@dataclass(frozen=True)
class Guard:
    """A test target, and those of its tests that matter here."""

    label: str
    tests: tuple[str, ...]
    """Names of functions, with an id in brackets where one set of parameters is enough."""

    @property
    def file(self) -> str:
        """The test file, which has the target's name."""
        return self.label.removeprefix("//").replace(":", "/") + ".py"

    def __str__(self) -> str:
        return f"{self.label} ({', '.join(self.tests)})"


@dataclass(frozen=True)
class Bug:
    """One edit of one file, and the test that must turn red for it."""

    name: str
    does: str
    """What is wrong, and who had it."""
    file: str
    guard: Guard
    original: str
    """Stands in the file exactly once."""
    planted: str
    raises: tuple[str, ...] = ()
    """Errors by which the guard may fail, beside assertions: names of exceptions, without their module."""


@dataclass(frozen=True)
class Case:
    """What the report says of one test."""

    name: str
    outcome: str
    """passed, skipped, failure (in the test itself) or error (before or after it)."""
    message: str


@dataclass(frozen=True)
class Run:
    """What a run of a guard left."""

    cases: tuple[Case, ...]
    imported: tuple[str, ...]
    """Files of first-party modules that the guard's process had imported at its end."""
    output: str


class WrongError(Exception):
    """The bug was not caught as it should be, or the row itself is wrong; the message says which."""

    def __init__(self, where: str, *, got: str, expected: str, hint: str) -> None:
        super().__init__(f"{where}: {got}; expected {expected}. hint: {hint}")


class Warm:
    """A process with the libraries of some sources, whose forks run guards; as a context manager, ended at its end."""

    def __init__(self, root: Path | None = None) -> None:
        """Starts it, for the sources below `root`: where this process was started, if None."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_THIS_TEST)}
        self._environment = environment | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(str(path / "site-packages") for path in _repositories()),
            "PYTHONSAFEPATH": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py").absolute()), str(root or Path.cwd())],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, program: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path
    ) -> bool:
        """Runs a Python program that finds modules in its folder first; whether it ended within SECONDS_MAX."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {
            "program": str(program),
            "arguments": arguments,
            "folder": str(folder),
            "environment": self._environment | environment,
            "log": str(log),
            "seconds_max": SECONDS_MAX,
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise WrongError(
                "warm.py",
                got=f"it has ended with {self._process.wait()}",
                expected="an answer",
                hint="what it says of an import is in this test's own output",
            )
        return bool(json.loads(answer))

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it: it reads no further run."""
        self._process.communicate()


def caught(bug: Bug, scratch: Path, warm: Warm, *, root: Path | None = None) -> Run:
    """The run in which the guard turned red for the right reason.

    Args:
        bug: what to plant.
        scratch: an empty directory.
        warm: runs the guard.
        root: the sources; where the process was started, if None.

    Raises:
        WrongError: the row is stale, the bug survives, or the guard is red for another reason.
    """
    copy = copied(root or Path.cwd(), scratch)
    plant(bug, copy)
    run = run_guard(bug.guard, copy, scratch, warm)
    judge(bug, run, copy)
    return run


def green(guard: Guard, scratch: Path, warm: Warm, *, root: Path | None = None) -> Run:
    """The run in which every named test passed, on a copy in which nothing is planted.

    Raises:
        WrongError: a test is not there, or is not green, so that its red would say nothing of a bug.
    """
    copy = copied(root or Path.cwd(), scratch)
    run = run_guard(guard, copy, scratch, warm)
    _check_origin(str(guard), run, copy)
    for test in guard.tests:
        found = [case for case in run.cases if test in (case.name, case.name.partition("[")[0])]
        if not found or any(case.outcome != "passed" for case in found):
            got = "; ".join(f"{case.outcome}: {case.message}" for case in found) or "it is not there"
            raise WrongError(
                f"{guard.label} {test}",
                got=f"without a bug, {got}",
                expected="a test that passes on the copy",
                hint=f"correct the row's guard and test, or see why a copy differs:\n{run.output}",
            )
    return run


def copied(root: Path, scratch: Path) -> Path:
    """A copy of the sources that may be edited: real files, laid out as Bazel lays out what a test may see."""
    runfiles = scratch / "copy.runfiles"
    copy = runfiles / os.environ.get("TEST_WORKSPACE", "_main")
    for folder in FOLDERS:
        if (root / folder).is_dir():
            shutil.copytree(root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in root.iterdir():
        if file.is_file():
            shutil.copy(file, copy / file.name)
    for repository in _repositories():
        (runfiles / repository.name).symlink_to(repository)
    return copy


def plant(bug: Bug, copy: Path) -> None:
    """Edits the copy.

    Raises:
        WrongError: the row is stale: the file is not there, or the text is not, or not just once.
    """
    path = copy / bug.file
    if not path.is_file():
        raise WrongError(
            f"bug {bug.name}",
            got=f"{bug.file} is not among the files of {bug.guard.label}",
            expected="a file that the guard depends on",
            hint="the row is stale, or names a guard that cannot see the file",
        )
    text = path.read_text(encoding="utf-8")
    if (count := text.count(bug.original)) != 1 or bug.original == bug.planted:
        raise WrongError(
            f"bug {bug.name}",
            got=f"the original text stands {count} times in {bug.file}",
            expected="once, and another text to plant",
            hint="the row is stale: take the text from the file as it is now, and check that the bug still is one",
        )
    path.write_text(text.replace(bug.original, bug.planted), encoding="utf-8")


def run_guard(guard: Guard, copy: Path, scratch: Path, warm: Warm) -> Run:
    """Runs the guard's tests on the copy, in a process that finds first-party modules nowhere else."""
    report, imported, log = scratch / "report.xml", scratch / "imported.txt", scratch / "output.txt"
    private = scratch / "private"
    private.mkdir()
    wheels = [str(path) for each in _repositories() if (path := each / "site-packages").is_dir()]
    environment = {
        "PLUMBLINE_IMPORTED": str(imported),
        "PYTHONPATH": os.pathsep.join([str(copy), *wheels]),
        "RUNFILES_DIR": str(copy.parent),
        "TEST_SRCDIR": str(copy.parent),
        "TEST_TARGET": guard.label,
        "TEST_TMPDIR": str(private),
        "TEST_WORKSPACE": copy.name,
        "XML_OUTPUT_FILE": str(report),
    }
    # The runner is the real one, whatever is planted in the copy's; what it imports comes from the copy.
    runner = Path("tools/bazel/pytest_runner.py").absolute()
    nodes = [f"{guard.file}::{test}" for test in guard.tests]
    has_ended = warm.run(runner, ["--", "-p", "tests.negative.imported", *nodes], copy, environment, log)
    output = log.read_text(encoding="utf-8", errors="replace")
    return Run(
        cases=tuple(_cases(report)),
        imported=tuple(imported.read_text(encoding="utf-8").splitlines()) if imported.exists() else (),
        output=output if has_ended else f"{output}it did not end within {SECONDS_MAX} s",
    )


def judge(bug: Bug, run: Run, copy: Path) -> None:
    """Passes a run in which a test failed by an assertion, or by an error that the bug lists.

    Raises:
        WrongError: no test ran, none failed, or one ended in another way.
    """
    where = f"bug {bug.name} ({bug.does})"
    _check_origin(where, run, copy)
    ran = [case for case in run.cases if case.outcome in ("passed", "failure")]
    by_mistake = [case for case in run.cases if case.outcome == "error" or not _is_expected(case, bug.raises)]
    if by_mistake or not ran:
        got = "; ".join(f"{case.name}: {case.outcome}: {case.message}" for case in by_mistake) or "no test ran"
        raise WrongError(
            where,
            got=f"{bug.guard} is red for the wrong reason ({got})",
            expected=" or ".join(["a failed assertion", *bug.raises]),
            hint=f"plant code that runs, and name tests that exist; its output:\n{run.output}",
        )
    if all(case.outcome == "passed" for case in ran):
        is_seen = str(copy / bug.file) in run.imported
        raise WrongError(
            where,
            got=f"it SURVIVES: {bug.guard} is green"
            + ("" if is_seen or not bug.file.endswith(".py") else f", and has not imported {bug.file}"),
            expected="a guard that turns red",
            hint="the bug is real, so the guard is too weak: strengthen it, or write one and name it here",
        )


def _is_expected(case: Case, raises: Sequence[str]) -> bool:
    if case.outcome != "failure" or FAILED_BY_ASSERTION.match(case.message):
        return True
    name = case.message.partition(":")[0].split("\n")[0]
    return name.rpartition(".")[2] in raises


def _check_origin(where: str, run: Run, copy: Path) -> None:
    strangers = [path for path in run.imported if not Path(path).is_relative_to(copy)]
    if strangers:
        raise WrongError(
            where,
            got=f"the guard imported {', '.join(strangers)}",
            expected=f"first-party modules from {copy} alone",
            hint="a module that is not copied cannot have a bug planted in it",
        )


def _cases(report: Path) -> list[Case]:
    """The tests of a report; none if there is no report that can be read."""
    try:
        found = ElementTree.parse(report).iter("testcase")
    except (OSError, ElementTree.ParseError):
        return []
    return [_case(case.attrib, next(iter(case.findall("*[@message]")), None)) for case in found]


def _case(attributes: Mapping[str, str], ended: ElementTree.Element | None) -> Case:
    name = attributes.get("name", "")
    return Case(name, "passed", "") if ended is None else Case(name, ended.tag, ended.get("message", ""))


def _repositories() -> list[Path]:
    """The other repositories among this test's files, wheels above all; none outside Bazel."""
    runfiles = os.environ.get("TEST_SRCDIR")
    if runfiles is None:
        return []
    return [path for path in sorted(Path(runfiles).iterdir()) if path.name != os.environ["TEST_WORKSPACE"]]
