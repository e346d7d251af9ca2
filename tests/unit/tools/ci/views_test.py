from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.runs import PASS, Run, Smoke, fail
from tests.unit.tools.ci.whole_run import red_run
from tools.ci import views
from tools.ci.last_run import Run as LastRun
from tools.ci.last_run import read_run


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> LastRun:
    return read_run(red_run(tmp_path_factory.mktemp("red")))


def test_a_grid_has_a_row_for_each_set_of_features_that_the_run_was_about(red: LastRun) -> None:
    grid = views.grids_of(red)[0]
    assert grid.variant == "cpu"
    assert grid.columns == [
        ("single", [1, 2, 4]),
        ("ddp", [1, 2, 4]),
        ("fsdp", [1, 2, 4]),
        ("deepspeed", [1, 2, 4]),
    ]
    assert [row.features for row in grid.rows][:2] == [(), ("activation_checkpointing",)]
    assert list(dict.fromkeys(row.recipe for row in grid.rows)) == ["sft", "ppo"]
    for row in grid.rows:
        assert [(each.cell.framework, each.cell.cards) for each in row.outcomes if each] == [
            (framework, cards) for framework, those in grid.columns for cards in those
        ]
        assert all(
            (each.cell.recipe, each.cell.features) == (row.recipe, row.features) for each in row.outcomes if each
        )
    shown = sum(len(row.outcomes) for row in grid.rows)
    assert shown + grid.num_left_out + grid.num_refused == sum(each.cell.variant == "cpu" for each in red.outcomes)


def test_every_cell_is_in_a_grid_or_counted_below_it(red: LastRun) -> None:
    grids = views.grids_of(red)
    shown = [each for grid in grids for row in grid.rows for each in row.outcomes if each]
    assert len(shown) < 1_000
    assert len({id(each) for each in shown}) == len(shown)
    counted = sum(grid.num_left_out + grid.num_refused for grid in grids) + len(shown)
    assert counted == len(red.outcomes) > 10_000
    blocking = {each.cell.key for each in red.outcomes if each.cell.depth == "blocking"}
    assert blocking <= {each.cell.key for each in shown}


def test_a_failed_cell_is_not_hidden_by_one_of_another_recipe(tmp_path: Path) -> None:
    cells = [smoke_files.cell("cpu", "fsdp", 2, (), recipe) for recipe in ("sft", "dpo", "ppo")]
    run = Smoke(tmp_path, *cells)
    run.cell(cells[0], smoke_files.verdict(cells[0], claims=[]))
    run.cell(cells[1])
    run.cell(cells[2])
    found = read_run(run.write())
    (grid,) = views.grids_of(found)
    assert [(row.recipe, [each.state for each in row.outcomes if each]) for row in grid.rows] == [
        ("sft", ["failed"]),
        ("dpo", ["proven"]),
        ("ppo", ["proven"]),
    ]
    assert [panel.recipe for panel in views.panels_of(found)] == ["sft", "dpo", "ppo"]


def test_refused_cells_are_grouped_by_what_the_plan_wants(red: LastRun) -> None:
    reasons = views.refusals_of(red)
    sizes = [len(reason.cells) for reason in reasons]
    assert sum(sizes) == len(red.in_state("refused"))
    assert sizes == sorted(sizes, reverse=True)
    offload = next(reason for reason in reasons if reason.says == "cpu_offload: expected fsdp or deepspeed")
    assert (offload.hint, offload.always) == ("leave it out", ["cpu_offload"])
    assert set(offload.got) == {"cpu_offload with single", "cpu_offload with ddp"}
    liger = next(reason for reason in reasons if reason.says == "loss.liger: expected triton")
    assert liger.always == ["cpu", "liger"]


def test_unproven_targets_are_grouped_by_reason(red: LastRun) -> None:
    reasons = {reason.says: len(reason.targets) for reason in views.unproven_of(red)}
    assert set(reasons) == {"no gpu-nvidia here", "no gpu-amd here", "no gpu-intel here"}
    assert sum(reasons.values()) == sum(bool(result.unproven) for result in red.results)


def test_curves_that_differ_in_framework_and_cards_share_a_panel_and_the_red_one_leads(red: LastRun) -> None:
    panels = views.panels_of(red)
    assert (panels[0].recipe, panels[0].variant, panels[0].features) == ("sft", "cpu", ())
    assert {outcome.state for outcome in panels[0].outcomes} == {"failed", "proven"}
    assert panels[0].worst is not None
    assert panels[0].worst > panels[0].tolerance
    assert sum(len(panel.outcomes) for panel in panels) == sum(bool(each.verdict) for each in red.outcomes)


def test_phases_keep_their_order_and_know_the_worst_part_of_a_budget(tmp_path: Path) -> None:
    cells = [smoke_files.cell("cpu", "fsdp", cards, ()) for cards in (1, 2)]
    run = Smoke(tmp_path, *cells)
    for cell, seconds in zip(cells, (2.0, 9.0), strict=True):
        phases = [
            {"name": "steps", "seconds": seconds, "seconds_max": 6.0, "bytes_written": 1},
            {"name": "export", "seconds": 1.0, "seconds_max": 6.0, "bytes_written": 1},
        ]
        run.cell(cell, smoke_files.verdict(cell, phases=phases))
    rows = views.phases_of(read_run(run.write()))
    assert [row.name for row in rows] == ["steps", "export"]
    outcome, phase, part = rows[0].worst
    assert (outcome.cell.cards, phase.seconds, part, rows[0].median_seconds) == (2, 9.0, 1.5, 5.5)


def at(run: Run, label: str, began: float, seconds: float, **about: Any) -> None:
    """A test that ran at some second."""
    run.test(label, {"test_one": PASS}, seconds=seconds, **about)
    run.events[-2]["testResult"]["testAttemptStartMillisEpoch"] = str(int((1_000 + began) * 1000))


def test_seconds_of_a_lane_are_its_share_of_the_clock(tmp_path: Path) -> None:
    cells = [smoke_files.cell("cpu", framework, 2, ()) for framework in ("ddp", "fsdp")]
    deep = smoke_files.cell("cpu", "fsdp", 2, ("compile", "lora"))
    card = smoke_files.cell("nvidia", "single", 1, ())
    run = Smoke(tmp_path, *cells, deep, card)
    at(run, cells[0]["target"], 0, 10)
    at(run, cells[1]["target"], 5, 10)
    at(run, "//tests/unit:a", 15, 4)
    at(run, "//tests/smoke:refusal_test", 15, 4)
    at(run, deep["target"], 30, 100)
    at(run, card["target"], 200, 2_000)
    at(run, "//tests/smoke:matrix_test", 300, 50, cached=True)
    assert views.lanes_of(read_run(run.write())) == [
        views.Lane("cpu", 17.0, 900.0, num_ran=3, num_cached=1),
        views.Lane("gpu-nvidia", 2_000.0, 1800.0, num_ran=1, num_cached=0),
    ]


def test_tiers_are_totals_of_their_results(red: LastRun) -> None:
    tiers = {tier.name: tier for tier in views.tiers_of(red)}
    assert set(tiers) == {"smoke", "subsystem", "unit"}
    unit = tiers["unit"]
    assert (unit.num_targets, unit.num_passed, unit.num_failed, unit.num_skipped, unit.num_cached) == (2, 2, 1, 1, 1)
    assert unit.seconds == 1.0
    assert sum(tier.num_failed for tier in tiers.values()) == len(red.failures)


def test_the_slowest_come_first(red: LastRun) -> None:
    seconds = [result.seconds for result in views.slowest_of(red)]
    assert seconds == sorted(seconds, reverse=True)
    assert len(seconds) == 12


@pytest.mark.parametrize(
    ("cases", "status", "expected"),
    [
        ({"a": PASS}, "PASSED", "Nothing failed."),
        ({"a": fail("x")}, "FAILED", "1 test failed."),
        ({"a": fail("x"), "b": fail("y")}, "FAILED", "2 tests failed."),
        (None, "REMOTE_FAILURE", "1 target never got to a verdict."),
        (None, None, "No test ran."),
    ],
)
def test_the_headline_says_how_it_went(
    tmp_path: Path, cases: dict[str, Any] | None, status: str | None, expected: str
) -> None:
    run = Run(tmp_path)
    if status:
        run.test("//tests/unit:a", cases, status)
    assert views.headline(read_run(run.write())) == expected
