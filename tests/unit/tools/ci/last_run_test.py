import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.runs import PASS, Run, Smoke, fail
from tools.ci.cells import parse_verdict
from tools.ci.count import report
from tools.ci.last_run import STATES, Outcome, read_run

PLAIN = smoke_files.cell("cpu", "single", 1, ())
LORA = smoke_files.cell("cpu", "fsdp", 2, ("lora",))
FULL = smoke_files.cell("cpu", "fsdp", 2, ("compile", "lora"))
REFUSED = smoke_files.cell("cpu", "single", 2, ())
NVIDIA = smoke_files.cell("nvidia", "single", 1, ())


def outcome(run: Smoke, cell: dict[str, Any]) -> Outcome:
    """What a run says of one cell."""
    key = f"{cell['variant']}/{cell['name']}"
    return next(outcome for outcome in read_run(run.write()).outcomes if outcome.cell.key == key)


def failed(run: Run) -> list[str]:
    """The failures of a run, as the count prints them."""
    text, num_failed = report(read_run(run.write()).results)
    lines = [line.removeprefix("failed").strip() for line in text.splitlines() if line.startswith("failed")]
    assert len(lines) == num_failed
    return lines


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_cell_with_a_verdict_is_proven(tmp_path: Path, packed: bool, cached: bool) -> None:
    run = Smoke(tmp_path, PLAIN)
    run.cell(PLAIN, packed=packed, cached=cached)
    found = outcome(run, PLAIN)
    assert (found.state, found.cached, found.why) == ("proven", cached, "")
    assert failed(run) == []


def test_a_refused_cell_keeps_its_reason_and_is_not_expected(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN, REFUSED)
    run.cell(PLAIN)
    assert outcome(run, REFUSED).state == "refused"
    assert outcome(run, REFUSED).why == "backend: single on 2 cards; expected one card"
    assert failed(run) == []


def test_a_cell_that_this_machine_cannot_run_is_unproven_with_bazels_reason(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN, NVIDIA)
    run.cell(PLAIN)
    run.skipped(NVIDIA["target"], "it needs gpu-nvidia")
    assert (outcome(run, NVIDIA).state, outcome(run, NVIDIA).why) == ("unproven", "it needs gpu-nvidia")
    assert failed(run) == []


def test_a_blocking_cell_whose_target_never_came_is_missing(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN, LORA, FULL)
    run.cell(PLAIN)
    assert outcome(run, LORA).state == "missing"
    assert outcome(run, FULL).state == "left out"
    assert failed(run) == [
        "//tests/smoke:smoke.sft_lora_fsdp_x2: missing: cell cpu/sft_lora_fsdp_x2: "
        "the run was asked for it, and never got to its target"
    ]


@pytest.mark.parametrize(
    ("patterns", "options", "state"),
    [
        (("//tests/smoke/...",), (), "missing"),
        (("//tests/smoke:all",), (), "missing"),
        ((LORA["target"],), (), "missing"),
        (("//tests/unit/...",), (), "left out"),
        (("//tests/smoke",), (), "left out"),
        (("//...", "-//tests/smoke/..."), (), "left out"),
        (("//...",), ("--test_tag_filters=-smoke",), "left out"),
        (("//...",), ("--test_tag_filters=gpu-amd",), "left out"),
        (("//...",), ("--test_tag_filters=gpu-amd,cpu",), "missing"),
        (("//...",), ("--test_tag_filters=smoke,-gpu-amd",), "missing"),
        (("//...",), ("--test_tag_filters=gpu-amd", "--test_tag_filters="), "missing"),
        (("//...",), ("--test_size_filters=small",), "left out"),
    ],
)
def test_only_what_the_command_asked_for_can_be_missing(
    tmp_path: Path, patterns: tuple[str, ...], options: tuple[str, ...], state: str
) -> None:
    run = Smoke(tmp_path, PLAIN, LORA)
    del run.events[1:3]
    run.asked(*patterns, options=options)
    run.cell(PLAIN)
    assert outcome(run, LORA).state == state


CARDS = [smoke_files.cell("nvidia", framework, 1, ()) for framework in ("single", "fsdp")]


@pytest.mark.parametrize(("word", "state"), [("gpu-nvidia", "missing"), ("gpu-amd", "left out")])
def test_a_lane_of_cards_misses_the_cells_of_its_own_accelerator(tmp_path: Path, word: str, state: str) -> None:
    run = Smoke(tmp_path, *CARDS, PLAIN)
    del run.events[1:3]
    run.asked("//tests/smoke/...", options=(f"--test_tag_filters={word}",))
    run.cell(CARDS[0])
    assert [outcome(run, cell).state for cell in (*CARDS, PLAIN)] == ["proven", state, "left out"]
    assert len(failed(run)) == (state == "missing")


@pytest.mark.parametrize(
    ("patterns", "members", "state"),
    [
        (("//tests/smoke:full.1",), (FULL["target"],), "missing"),
        (("//tests/smoke:full.1",), (LORA["target"],), "left out"),
        (("//tests/smoke:full.2",), (), "left out"),
        ((FULL["target"],), (), "missing"),
        (("//tests/smoke:all", "//tests/smoke/..."), (), "left out"),
        (("//tests/smoke:full.1", f"-{FULL['target']}"), (FULL["target"],), "left out"),
    ],
)
def test_a_cell_of_the_full_depth_is_missing_where_it_or_its_suite_was_named(
    tmp_path: Path, patterns: tuple[str, ...], members: tuple[str, ...], state: str
) -> None:
    run = Smoke(tmp_path, PLAIN, FULL)
    del run.events[1:3]
    run.asked(*patterns, "//tests/smoke:matrix", PLAIN["target"])
    suite = {"suiteLabel": "//tests/smoke:full.1", "testLabels": list(members)}
    run.events[2]["expanded"] = {"testSuiteExpansions": [suite]}
    run.cell(PLAIN)
    assert outcome(run, FULL).state == state
    assert len(failed(run)) == (state == "missing")


def test_a_cell_of_the_full_depth_that_passes_without_a_verdict_is_missing(tmp_path: Path) -> None:
    run = Smoke(tmp_path, FULL)
    run.test(FULL["target"], {"test_cell": PASS})
    assert outcome(run, FULL).state == "missing"
    assert len(failed(run)) == 1


@pytest.mark.parametrize("matrix", [True, False])
def test_a_cell_that_no_matrix_has_and_that_left_no_verdict_is_missed(tmp_path: Path, matrix: bool) -> None:
    run = Smoke(tmp_path, PLAIN)
    run.cell(PLAIN)
    run.test("//tests/smoke:smoke.sft_new_single_x1", {"test_cell": PASS})
    if not matrix:
        run.events = [event for event in run.events if "namedSet" not in event["id"]]
    assert "//tests/smoke:smoke.sft_new_single_x1: missing: its target passed, and left no verdict" in failed(run)


def test_a_target_that_passes_without_a_verdict_is_missing(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN)
    run.test(PLAIN["target"], {"test_cell": PASS})
    assert outcome(run, PLAIN).state == "missing"
    assert len(failed(run)) == 1


def test_a_cell_that_failed_counts_once(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN)
    broken = smoke_files.claim("golden", "equals", 0.1, 0, holds=False, detail="step 3 differs by 0.1")
    run.cell(PLAIN, smoke_files.verdict(PLAIN, status="failed", claims=[broken]))
    assert outcome(run, PLAIN).why == "golden: step 3 differs by 0.1"
    assert len(failed(run)) == 1
    run.result(PLAIN["target"], {"test_cell": fail("golden")}, left={}, attempt=2)
    run.summary(PLAIN["target"], "FAILED")
    assert failed(run) == [f"{PLAIN['target']}: test_cell: golden"]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (smoke_files.verdict(PLAIN, cell={**PLAIN, "cards": 4}), "the matrix says cards 1, its verdict 4"),
        (smoke_files.verdict(PLAIN, target="//tests/smoke:other"), "the matrix says target"),
        (smoke_files.verdict(PLAIN, claims=[]), "it makes no claim, which proves nothing"),
        (smoke_files.verdict(PLAIN, claims=[smoke_files.claim("golden", "so", 0, 0)]), "it makes 1 of 7 claims"),
        ("{}", "schema is None; expected 1"),
        (smoke_files.verdict(LORA), "its verdict is about cpu/sft_lora_fsdp_x2, which is not in the matrix"),
    ],
)
def test_a_verdict_that_does_not_bear_out_its_cell_is_red(tmp_path: Path, raw: str, why: str) -> None:
    run = Smoke(tmp_path, PLAIN)
    run.cell(PLAIN, raw)
    assert outcome(run, PLAIN).state == "failed"
    assert why in outcome(run, PLAIN).why
    assert len(failed(run)) == 1


def test_two_verdicts_about_a_cell_are_red(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN)
    raw = smoke_files.verdict(PLAIN)
    run.test(PLAIN["target"], {"test_cell": PASS}, left={"a/verdict.json": raw, "b/verdict.json": raw})
    assert outcome(run, PLAIN).why == "two verdicts are about it"
    assert len(failed(run)) == 1


def test_a_verdict_that_shows_the_way_to_a_pool_proves_nothing_of_its_cell(tmp_path: Path) -> None:
    label, says = "//tests/smoke:routes.gpu-amd.sft_single_x1", "routing only, no card: on a worker of pool gpu-amd"
    raw = smoke_files.verdict(PLAIN, target=label, route=says)
    run = Smoke(tmp_path, PLAIN)
    run.test(label, {"test_cell": PASS}, left={"verdict.json": raw})
    assert outcome(run, PLAIN).verdict is None
    run.cell(PLAIN)
    assert outcome(run, PLAIN).state == "proven", "of its own target, and not red for a second verdict"
    assert failed(run) == []
    assert parse_verdict(raw, "").problem == says, "a folder of verdicts is made no proof of, either"


def test_a_proven_verdict_under_a_failed_test_is_not_proven(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN)
    left = {"verdict.json": smoke_files.verdict(PLAIN)}
    run.test(PLAIN["target"], {"test_cell": fail("a process is left")}, "FAILED", left=left)
    assert outcome(run, PLAIN).why == "test_cell: a process is left"
    assert len(failed(run)) == 1


def test_a_smoke_run_without_its_matrix_is_red_for_nothing_says_what_is_owed(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN)
    run.cell(PLAIN)
    run.events = [event for event in run.events if "namedSet" not in event["id"]]
    assert outcome(run, PLAIN).state == "failed"
    assert failed(run) == [
        f"{PLAIN['target']}: failed: cell cpu/sft_single_x1: nothing says which claims it must make. "
        "hint: ./bazelw build //tests/smoke:matrix",
        "//tests/smoke:matrix: no matrix file, so nothing can be said to be missing. "
        "hint: add //tests/smoke:matrix to what is tested",
    ]


def test_a_matrix_that_cannot_be_read_is_red(tmp_path: Path) -> None:
    run = Smoke(tmp_path, PLAIN)
    run.cell(PLAIN)
    (tmp_path / "matrix.json").write_text("{")
    assert any("matrix.json: is no JSON" in each for each in failed(run))
    assert outcome(run, PLAIN).state == "failed"


def test_a_run_without_a_smoke_tier_needs_no_matrix(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.asked("//...")
    run.test("//tests/unit:a", {"test_one": PASS})
    found = read_run(run.write())
    assert (found.outcomes, found.failures) == ([], [])


def test_what_a_target_never_got_to_say_is_infrastructure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": fail("1 != 2")}, "FAILED")
    run.test("//tests/unit:b", None, "REMOTE_FAILURE")
    run.configured("//tests/unit:c")
    detail = {"failureDetail": {"message": "Analysis failed: no such package 'x'\nmore"}}
    run.events.append({"id": {"targetCompleted": {"label": "//tests/unit:c"}}, "completed": detail})
    run.test("//tests/unit:d", None, "TIMEOUT")
    failures = read_run(run.write(code=3)).failures
    assert [(str(failure), failure.infrastructure) for _, failure in failures] == [
        ("test_one: 1 != 2", False),
        ("remote failure, without a failed case", True),
        ("build or analysis failed: Analysis failed: no such package 'x'", True),
        ("timeout, without a failed case", False),
    ]


def test_the_tags_of_a_skipped_target_say_what_it_needs(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.skipped("//tests/unit:a.gpu-amd", "Target was skipped.", tags=("unit", "gpu-amd"))
    run.skipped("//tools/lint:b", "Target was skipped.", tags=("lint", "cpu", "needs:buildifier"))
    run.skipped("//tools/lint:c", "Target was skipped.")
    reasons = [result.unproven for result in read_run(run.write()).results]
    assert sorted(reasons) == ["Target was skipped.", "no buildifier here", "no gpu-amd here"]


def test_the_run_itself_is_described(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.asked("//...", "-//tests/unit/...")
    run.configured("//tests/unit:a")
    run.result("//tests/unit:a", {"test_one": fail("no")}, attempt=1, seconds=2.0, log="first")
    run.result("//tests/unit:a", {"test_one": PASS}, attempt=2, seconds=1.5, log="second")
    run.summary("//tests/unit:a", "FLAKY")
    found = read_run(run.write())
    assert (found.build.command, found.build.seconds) == ("bazel test //... -//tests/unit/...", 63.0)
    (result,) = found.results
    assert (result.flaky, result.num_attempts, result.seconds) == (True, 2, 1.5)
    assert [path.read_text() for path in result.logs] == ["second"]


def test_files_that_a_later_run_wrote_are_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.test("//tests/unit:a", {"test_one": PASS})
    run.test("//tests/unit:b", {"test_one": PASS})
    path = run.write()
    assert read_run(path).run_again == []
    later = path.stat().st_mtime + 60
    os.utime(read_run(path).results[1].reports[0], (later, later))
    assert read_run(path).run_again == ["//tests/unit:b"]


def test_every_state_is_explained(tmp_path: Path) -> None:
    run = Smoke(tmp_path, *smoke_files.matrix()["cells"])
    run.cell(PLAIN)
    run.skipped(NVIDIA["target"], "it needs gpu-nvidia")
    failed = smoke_files.cell("cpu", "ddp", 2, ())
    run.cell(failed, smoke_files.verdict(failed, claims=[]))
    assert {outcome.state for outcome in read_run(run.write()).outcomes} == set(STATES)
