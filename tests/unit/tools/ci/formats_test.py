import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.runs import Run, Smoke, fail
from tests.unit.tools.ci.whole_run import green_run, red_run
from tools.ci import formats
from tools.ci.last_run import Run as LastRun
from tools.ci.last_run import read_run


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> LastRun:
    return read_run(red_run(tmp_path_factory.mktemp("red")))


def test_the_merged_junit_file_has_every_case_once(red: LastRun) -> None:
    root = ElementTree.fromstring(formats.junit(red).split("\n", 1)[1])
    assert [suite.get("name") for suite in root] == [result.label for result in red.results]
    by_name = {suite.get("name"): [case.get("name") for case in suite] for suite in root}
    assert by_name["//tests/unit/training:b_test"] == ["test_three", "test_four"]
    assert by_name["//tests/subsystem:d_test"] == ["test_five"]
    assert root.get("failures") == str(len(red.failures))
    assert int(root.get("tests", "")) == len(list(root.iter("testcase")))


def test_what_no_report_holds_is_in_the_merged_one(red: LastRun) -> None:
    root = ElementTree.fromstring(formats.junit(red).split("\n", 1)[1])
    error = root.find("testsuite[@name='//tests/subsystem:c_test']/testcase/error")
    assert error is not None
    assert error.get("message") == "remote failure, without a failed case"
    missing = [each.get("message", "") for each in root.iter("failure") if "missing: " in each.get("message", "")]
    assert len(missing) == 1
    skipped = [each.get("message") for each in root.iter("skipped") if each.get("message")]
    assert "unproven: no gpu-nvidia here" in skipped


def test_the_json_file_counts_as_the_run_does(red: LastRun) -> None:
    made = json.loads(json.dumps(formats.record(red, {"commit": "abc"}), allow_nan=False))
    assert (made["commit"], made["num_failed"]) == ("abc", len(red.failures))
    assert sum(made["cell_states"].values()) == len(red.outcomes)
    assert sum(group["num_cells"] for group in made["refusals"]) == made["cell_states"]["refused"]
    assert {cell["state"] for cell in made["cells"]} == {"failed", "missing", "proven", "unproven", "left out"}
    assert [cell["claims"] for cell in made["cells"] if cell["state"] == "failed"] == [
        {"golden": False},
        {"world": False},
    ]


def test_a_loss_that_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    cell = smoke_files.cell("cpu", "single", 1, ())
    run = Smoke(tmp_path, cell)
    run.cell(cell, smoke_files.verdict(cell, curve=[{"step": 1, "loss": None, "gradient_norm": 1.0}]))
    made = formats.record(read_run(run.write()), {})
    assert made["cells"][0]["losses"] == [None]
    json.dumps(made, allow_nan=False)


def test_the_summary_says_what_is_red_and_what_is_not_proven(red: LastRun) -> None:
    text = formats.markdown(red, {"commit": "abc"})
    assert text.startswith("## 3 tests failed, 1 cell is missing and 1 target never got to a verdict.\n")
    assert "- `//tests/unit/training:b_test` test\\_three: \\</script\\>" in text
    assert "### Infrastructure\n\n- `//tests/subsystem:c_test` remote failure" in text
    assert "### Flaky\n\n- `//tests/subsystem:d_test`" in text
    assert "no gpu-nvidia here: " in text
    assert text.endswith("commit abc\n")


def test_a_lane_over_its_budget_is_said_in_the_summary_and_in_json(tmp_path: Path) -> None:
    cell = smoke_files.cell("cpu", "single", 1, ())
    run = Smoke(tmp_path, cell)
    run.cell(cell, seconds=901.0)
    run.events[-2]["testResult"]["testAttemptStartMillisEpoch"] = "1795792437106"
    found = read_run(run.write())
    assert formats.record(found, {})["lanes"] == [
        {"accelerator": "cpu", "seconds": 901.0, "seconds_max": 900.0, "num_ran": 1, "num_cached": 0}
    ]
    said = "block a change, cpu: 901 s of 900 s; **over its budget**, 1 ran, 0 cached."
    assert said in formats.markdown(found, {})


def test_a_green_summary_is_short(tmp_path: Path) -> None:
    text = formats.markdown(read_run(green_run(tmp_path)), {})
    assert text.splitlines()[0] == "## Nothing failed."
    assert "1 test case passed in 1 target." in text
    assert "Failed\n" not in text


def test_a_summary_fits_into_a_comment(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {f"test_{at}": fail("long " * 40) for at in range(1000)}, "FAILED")
    text = formats.markdown(read_run(run.write(code=3)), {})
    assert len(text) <= formats.MARKDOWN_CHARACTERS
    assert text.endswith("lines more, in the report.\n")
