from pathlib import Path

import pytest

from tests.unit.tools.ci.runs import PASS, SKIP, Run, fail
from tools.ci.count import main, report
from tools.ci.last_run import read_run


def counted(path: Path, *expected: str) -> list[str]:
    """The lines of a report on an event file."""
    return report(read_run(path, expected).results)[0].splitlines()


def test_cases_are_counted_and_not_targets(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit/a:a_test", {"test_one": PASS, "test_two": PASS, "test_three": SKIP})
    run.test("//tools/lint:ruff_test", {"test_ruff": PASS}, cached=True)
    run.configured("//training:training", size=None)
    assert counted(run.write()) == [
        "tier          targets   cached   passed   failed  skipped",
        "unit                1        0        2        0        1",
        "lint                1        1        1        0        0",
        "3 passed, 0 failed",
    ]


def test_a_lane_of_an_accelerator_that_proved_nothing_is_red_though_bazel_was_green(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/smoke:refusal_test", {"test_cell": PASS})
    run.configured("//tests/smoke:cards_test.gpu-amd", tags=("gpu-amd",))
    identity = {"targetCompleted": {"label": "//tests/smoke:cards_test.gpu-amd"}}
    run.events.append({"id": identity, "aborted": {"reason": "SKIPPED"}})
    assert counted(run.write(), "smoke")[-1] == "1 passed, 0 failed"
    lines = counted(run.write(), "smoke", "gpu-amd")
    assert "failed    gpu-amd: expected, and no test of it ran" in lines
    assert lines[-1] == "1 passed, 1 failed"


def test_a_lane_of_an_accelerator_may_be_cached(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/smoke:cards_test.gpu-amd", {"test_cell": PASS}, cached=True)
    assert counted(run.write(), "gpu-amd")[-1] == "1 passed, 0 failed"


def test_a_machine_that_is_at_fault_is_told_from_the_code(tmp_path: Path) -> None:
    run = Run(tmp_path)
    error = '<error type="infrastructure" message="cards: 0 of gpu-amd"/>'
    run.test("//tests/smoke:smoke.a.gpu-amd", {"hardware": error}, "FAILED")
    run.test("//tests/unit:b", {"test_one": fail("1 != 2")}, "FAILED")
    failures = {each.label: each.failed[0] for each in read_run(run.write(code=3)).results if each.failed}
    assert failures["//tests/smoke:smoke.a.gpu-amd"].infrastructure
    assert not failures["//tests/unit:b"].infrastructure


def test_failed_cases_are_named_with_their_reason(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS, "test_two": fail("1 != 2\nassert 1 == 2")}, "FAILED")
    assert counted(run.write(code=3, name="TESTS_FAILED"))[-2:] == [
        "failed    //tests/unit:a: test_two: 1 != 2",
        "1 passed, 1 failed",
    ]


def test_all_shards_count_and_only_the_last_attempt_of_each(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.configured("//tests/unit:a")
    run.result("//tests/unit:a", {"test_one": fail("flaky")}, shard=1, attempt=1)
    run.result("//tests/unit:a", {"test_one": PASS}, shard=1, attempt=2)
    run.result("//tests/unit:a", {"test_two": PASS, "test_three": PASS}, shard=2)
    run.summary("//tests/unit:a", "FLAKY")
    assert counted(run.write())[-1] == "3 passed, 0 failed"


@pytest.mark.parametrize(
    ("cases", "status", "reason"),
    [
        (None, "TIMEOUT", "timeout, without a failed case"),
        (None, "PASSED", "passed, without a passed case"),
        ({"test_one": PASS}, "FAILED", "failed, without a failed case"),
        ({"test_one": SKIP}, "PASSED", "passed, without a passed case"),
        ({}, "PASSED", "passed, without a passed case"),
    ],
)
def test_a_target_that_proved_nothing_is_one_failure(
    tmp_path: Path, cases: dict[str, str] | None, status: str, reason: str
) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", cases, status)
    run.test("//tests/unit:b", {"test_one": PASS})
    lines = counted(run.write(code=3))
    assert f"failed    //tests/unit:a: {reason}" in lines
    assert lines[-1].endswith("passed, 1 failed")


def test_a_target_that_was_not_built_is_one_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.configured("//tests/unit:a")
    run.events.append({"id": {"targetCompleted": {"label": "//tests/unit:a"}}, "completed": {}})
    run.test("//tests/unit:b", {"test_one": PASS})
    assert counted(run.write(code=1, name="BUILD_FAILURE"))[-2:] == [
        "failed    //tests/unit:a: build or analysis failed, without a failed case",
        "1 passed, 1 failed",
    ]


def test_a_target_that_somebody_did_not_wait_for_is_said_to_be_interrupted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.configured("//tests/unit:a")
    run.test("//tests/unit:b", {"test_one": PASS})
    assert counted(run.write(code=8, name="INTERRUPTED"))[-2:] == [
        "failed    //tests/unit:a: interrupted, without a failed case",
        "1 passed, 1 failed",
    ]


def test_a_report_that_is_gone_is_one_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    path = run.write()
    next(tmp_path.glob("logs*/*.xml")).unlink()
    assert counted(path)[-1] == "0 passed, 1 failed"


def test_a_report_on_another_machine_is_one_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    run.events[2]["testResult"]["testActionOutput"][0]["uri"] = "bytestream://cache/blobs/1"
    assert "bytestream://cache/blobs/1 is not on this machine" in "\n".join(counted(run.write()))


def test_what_this_machine_cannot_run_is_unproven_and_not_passed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    run.skipped("//tests/unit:a.gpu-amd", "Target is incompatible: it needs gpu-amd")
    assert counted(run.write())[-2:] == [
        "unproven  //tests/unit:a.gpu-amd: Target is incompatible: it needs gpu-amd",
        "1 passed, 0 failed",
    ]


def test_an_expected_tier_without_a_case_is_one_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    run.skipped("//tests/subsystem:b", "incompatible")
    lines = counted(run.write(), "lint", "unit", "subsystem")
    assert "failed    lint: expected, and no test of it ran" in lines
    assert "failed    subsystem: expected, and no test of it ran" in lines
    assert lines[-1] == "1 passed, 2 failed"


def test_a_run_that_was_cut_off_is_one_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    assert counted(run.write(finished=False))[-2:] == [
        "failed    bazel: the run ended before its events did",
        "1 passed, 1 failed",
    ]


def test_a_bazel_that_failed_for_its_own_reasons_is_one_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    assert counted(run.write(code=37, name="BLAZE_INTERNAL_ERROR"))[-2:] == [
        "failed    bazel: exit 37: BLAZE_INTERNAL_ERROR",
        "1 passed, 1 failed",
    ]


def test_no_test_at_all_is_one_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(Run(tmp_path).write(code=4, name="NO_TESTS_FOUND"))]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["failed    no test ran", "0 passed, 1 failed"]


def test_an_event_file_that_is_missing_is_one_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "events.json"), "--expect", "unit"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 2 failed"


def test_a_green_run_exits_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    assert main([str(run.write()), "--expect", "unit"]) == 0
    assert capsys.readouterr().out.endswith("\n1 passed, 0 failed\n")
