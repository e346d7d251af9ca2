"""The main program of every py_test: runs pytest on the listed files and speaks Bazel's test protocol.

Usage, by the macro: pytest_runner.py FILE... [-- PYTEST_OPTION...]

What pytest alone would let pass is a failure here: a file without tests, a filter that matches nothing, an empty shard,
and a run in which every test was skipped. Nothing was proven then. A test that asks for an accelerator and is not on a
machine with it fails before anything is collected, with an exit code of its own: that is no news about the code.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import pathlib
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import pytest

from tools.bazel.hermetic import seed_everything, settle_environment, straighten

OUR_OWN = ("training", "tests", "tools")


class BazelProtocol:
    """Shards, seeds, counts, and turns the exit code red when no test has passed or failed."""

    def __init__(self, seed: int) -> None:
        """Starts with nothing counted."""
        self.seed = seed
        self.num_collected = 0
        self.num_proven = 0
        self.problem = ""

    def pytest_configure(self, config: pytest.Config) -> None:
        """Makes warnings that our own modules cause errors; those of the libraries are theirs."""
        for name in OUR_OWN:
            config.addinivalue_line("filterwarnings", rf"error:::{name}\..*")

    def pytest_collection_finish(self) -> None:
        """Sets aside what was imported: no search for garbage need walk it again."""
        gc.freeze()
        gc.enable()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keeps every n-th test, where Bazel asks for shard i of n."""
        self.num_collected = len(items)
        shards, index = int(os.environ.get("TEST_TOTAL_SHARDS", "1")), int(os.environ.get("TEST_SHARD_INDEX", "0"))
        if shards > 1:
            if items and len(items) < shards:
                self.problem = f"{len(items)} tests cannot fill {shards} shards; hint: lower shard_count"
            config.hook.pytest_deselected(items=[item for at, item in enumerate(items) if at % shards != index])
            items[:] = items[index::shards]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Seeds before each test."""
        seed_everything(self.seed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts what ran to a result."""
        self.num_proven += not report.skipped and report.when == "call"

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Refuses a green result that rests on nothing."""
        if (
            exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
            and not session.config.option.collectonly
        ):
            if not self.num_proven and not self.problem:
                wanted = os.environ.get("TESTBRIDGE_TEST_ONLY")
                if session.testscollected:
                    self.problem = "every test was skipped, which proves nothing"
                elif wanted:
                    self.problem = f"--test_filter={wanted} matches no test of this target"
                else:
                    self.problem = "no test was collected; hint: functions are named test_..."
            if self.problem:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Says why a run without a failed test is red."""
        if self.problem:
            terminalreporter.write_line(f"ERROR: {self.problem}", red=True, bold=True)


def filter_options(wanted: str) -> list[str]:
    """The pytest options for Bazel's --test_filter: an expression for -k, or the end of a node id."""
    return ["-k", wanted.split("::", 1)[1].replace("::", " and ") if "::" in wanted else wanted] if wanted else []


def pytest_options(environment: dict[str, str], scratch: pathlib.Path) -> list[str]:
    """What Bazel's variables mean in pytest's words."""
    options = ["--import-mode=importlib", "--strict-markers", "-p", "no:cacheprovider", "-c", os.devnull]
    options += ["--rootdir", os.getcwd(), "--basetemp", str(scratch / "pytest"), "-o", "xfail_strict=true"]
    options += [
        "--color=yes" if environment.get("TERM", "dumb") != "dumb" else "--color=no",
        "-q",
        "-rs",
        "--durations=3",
    ]
    if report := environment.get("XML_OUTPUT_FILE"):
        options += [f"--junit-xml={report}", "-o", f"junit_suite_name={environment.get('TEST_TARGET', 'pytest')}"]
    if environment.get("TESTBRIDGE_TEST_RUNNER_FAIL_FAST") == "1":
        options.append("--exitfirst")
    return options + filter_options(environment.get("TESTBRIDGE_TEST_ONLY", ""))


def wrong_machine() -> str | None:
    """What this machine lacks of what the test asks for; None if nothing, and then its cards are this process's alone.

    A test for the cpu asks for nothing, and brings no code that would look, unless it is to show the way to a pool.
    """
    route = os.environ.get("PLUMBLINE_ROUTE", "")
    if os.environ.get("PLUMBLINE_ACCELERATOR", "cpu") == "cpu" and not route:
        return None
    from tools.devices.check import place

    here = place()
    reason = wrong_route(route) if route else wrong_cards()
    return reason and reason.replace(". hint:", f"{here.sentence if here else ''}. hint:", 1)


def wrong_route(pool: str) -> str | None:
    """Why a test of the cpu does not show the way to a simulated pool; None if it does, and then it says so."""
    from tools.devices.check import only_the_route, place

    try:
        os.environ["PLUMBLINE_ROUTED"] = only_the_route(pool, place())
    except LookupError as error:
        return str(error)
    print(os.environ["PLUMBLINE_ROUTED"], flush=True)
    return None


def wrong_cards() -> str | None:
    """What this machine lacks of the cards that the test asks for; None if nothing, and then they are leased."""
    from tools.devices.check import LEASED, asked_in, astray, place, problem
    from tools.devices.detect import devices
    from tools.devices.lease import LeaseError, TooFewError, lease_for_this_process

    asked = asked_in(os.environ)
    if reason := astray(os.environ.get("PLUMBLINE_POOL", ""), asked.hardware, place()):
        return reason
    found = devices()
    try:
        lease_for_this_process(found)
    except TooFewError:
        pass  # The check below says more.
    except LeaseError as error:
        return str(error)
    torch = importlib.util.find_spec("torch")
    version = pathlib.Path(torch.origin).with_name("version.py") if torch and torch.origin else None
    return problem(asked, found, os.environ.get(LEASED), version)


def report_infrastructure(reason: str) -> int:
    """Says to people, to Bazel and to whoever reads the report that the machine is at fault; returns the exit code."""
    from tools.devices.check import EXIT_CODE

    print(f"pytest_runner: infrastructure, not the code: {reason}", file=sys.stderr)
    if file := os.environ.get("TEST_INFRASTRUCTURE_FAILURE_FILE"):
        pathlib.Path(file).write_text(f"{reason}\n", encoding="utf-8")
    if report := os.environ.get("XML_OUTPUT_FILE"):
        name = os.environ.get("TEST_TARGET", "pytest")
        suite = ElementTree.Element("testsuite", name=name, tests="1", errors="1", failures="0", skipped="0")
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="hardware", time="0")
        ElementTree.SubElement(case, "error", type="infrastructure", message=reason)
        ElementTree.ElementTree(suite).write(report, encoding="utf-8", xml_declaration=True)
    return EXIT_CODE


def main(arguments: list[str]) -> int:
    """Runs the files before `--` with the pytest options after it; returns the exit code."""
    straighten(os.environ, sys.path)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    files, extra = arguments[:at], arguments[at + 1 :]
    scratch = pathlib.Path(os.environ.get("TEST_TMPDIR") or tempfile.mkdtemp(prefix="plumbline-test-"))
    settle_environment(scratch, cpus=int(os.environ.get("PLUMBLINE_CPUS", "1")))
    if status := os.environ.get("TEST_SHARD_STATUS_FILE"):
        pathlib.Path(status).touch()
    if missing := [file for file in files if not os.path.exists(file)]:
        print(f"pytest_runner: not among this test's files: {', '.join(missing)}", file=sys.stderr)
        return 2
    if reason := wrong_machine():
        return report_infrastructure(reason)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    seed = int(os.environ.get("PLUMBLINE_SEED", "0"))
    target = os.environ.get("TEST_TARGET", "TARGET")
    print(
        f"seed {seed}; replay: ./bazelw test {target} --test_env=PLUMBLINE_SEED={seed} --nocache_test_results",
        flush=True,
    )
    protocol = BazelProtocol(seed)
    # The torch stack is half a million objects that stay. Looking for garbage among them is an eighth of its import.
    gc.disable()
    try:
        # Properties are checked on the same examples every time: a cached pass must mean what a fresh one means.
        import hypothesis

        hypothesis.settings.register_profile("plumbline", derandomize=True, database=None, deadline=None)
        hypothesis.settings.load_profile("plumbline")
    except ModuleNotFoundError:
        pass
    return int(pytest.main([*pytest_options(dict(os.environ), scratch), *extra, *files], plugins=[protocol]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
