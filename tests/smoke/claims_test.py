"""Each claim can fail: evidence of a real run holds, and the same with one thing changed does not."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.claims import CHECKS, MEMORY_MAX_BYTES, PHASES, judge, owed
from tests.smoke.evidence import Evidence
from tests.smoke.matrix import TABLES, Cell, cell_named
from tests.smoke.runner import prove, verdict_of
from tests.smoke.verdict import write
from tools.ci.cells import parse_verdict
from training.checkpoint.manifest import newest

CELL = cell_named("sft_lora_fsdp_x2")
DRAWING = cell_named("grpo_fsdp_x2")


def proven(cell: Cell, folder: Path) -> Path:
    """What one real run of a cell left behind."""
    verdict = prove(cell, folder, replay="")
    assert verdict["status"] == "proven", verdict["claims"]
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proven(CELL, tmp_path_factory.mktemp("ran"))


@pytest.fixture(scope="module")
def drew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proven(DRAWING, tmp_path_factory.mktemp("drew"))


def changed(path: Path, change: Callable[[Any], object]) -> None:
    """Rewrites a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def steps_changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites the steps in a metrics file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "step":
            change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def another_exit_code(run: Path) -> None:
    changed(run / "sessions.json", lambda found: found["sessions"][1].update(exit_code=1))


def a_run_cut_short(run: Path) -> None:
    changed(run / "out/summary.json", lambda found: found.update(num_steps=14))


def another_plan(run: Path) -> None:
    changed(run / "at_kill/run.json", lambda found: found["plan"].update(weight_decay=0.5))


def a_rank_less(run: Path) -> None:
    changed(run / "at_kill/run.json", lambda found: found["ranks"].pop())


def another_device(run: Path) -> None:
    changed(run / "out/run.json", lambda found: found["ranks"][1].update(device="cuda:1"))


def a_rank_that_holds_everything(run: Path) -> None:
    changed(run / "out/run.json", lambda found: found["ranks"][0].update(num_weights_held=10**6))


def a_loss_that_rises(run: Path) -> None:
    steps_changed(run / "out/metrics.jsonl", lambda step: step.update(loss=step["loss"] * (1 + step["step"] // 11)))


def a_loss_that_is_not_finite(run: Path) -> None:
    steps_changed(
        run / "out/metrics.jsonl", lambda step: step.update(loss=math.nan if step["step"] == 12 else step["loss"])
    )


def another_last_digit_before_the_kill(run: Path) -> None:
    steps_changed(run / "at_kill/metrics.jsonl", lambda step: step.update(loss=step["loss"] * (1 + 1e-15)))


def a_step_that_is_missing(run: Path) -> None:
    path = run / "out/metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if '"kind": "step", "step": 12,' not in line]
    path.write_text("\n".join(lines) + "\n")


def a_curve_of_its_own(run: Path) -> None:
    for name in ("out", "at_kill"):
        steps_changed(run / name / "metrics.jsonl", lambda step: step.update(loss=step["loss"] * 1.001))


def another_byte_in_a_checkpoint(run: Path) -> None:
    found = newest(run / "out/checkpoints")
    assert found is not None
    path = next(found.glob("moments*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def a_save_left_half_way(run: Path) -> None:
    (run / "out/checkpoints/.unfinished-step-00000020").mkdir()


def an_export_of_the_base_model(run: Path) -> None:
    changed(run / "reload.json", lambda found: found["exports"]["merged"].update(moved=0.0))


def an_adapter_that_computes_something_else(run: Path) -> None:
    changed(run / "reload.json", lambda found: found["exports"]["adapter"].update(difference=1e-6))


def an_export_whose_logits_are_not_finite(run: Path) -> None:
    changed(run / "reload.json", lambda found: found["exports"]["adapter"].update(difference=math.nan, moved=math.inf))


def a_process_left(run: Path) -> None:
    changed(run / "sessions.json", lambda found: found["sessions"][1]["left"].update(processes=["4711 rank 1"]))


def too_much_memory(run: Path) -> None:
    above = MEMORY_MAX_BYTES + 1
    changed(run / "sessions.json", lambda found: found["sessions"][0].update(memory_peak_bytes=above))


def a_phase_that_hangs(run: Path) -> None:
    changed(run / "sessions.json", lambda found: found["phases"][2].update(seconds=1e4))


def a_phase_that_fills_the_disk(run: Path) -> None:
    above = PHASES["export"].bytes_max + 1
    changed(run / "sessions.json", lambda found: found["phases"][4].update(bytes_written=above))


def a_phase_without_an_end(run: Path) -> None:
    changed(run / "sessions.json", lambda found: found["phases"].pop(4))


def no_hardware(run: Path) -> None:
    (run / "hardware.json").unlink()


def an_unknown_machine(run: Path) -> None:
    changed(run / "hardware.json", lambda found: found["hardware"].update(processor=""))


def no_version_of_torch(run: Path) -> None:
    changed(run / "hardware.json", lambda found: found["versions"].pop("torch"))


def no_reload(run: Path) -> None:
    (run / "reload.json").unlink()


def a_rollout_written_twice(run: Path) -> None:
    path = run / "out/completions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, *(line for line in lines if json.loads(line)["step"] == 6)]))


def another_reward(run: Path) -> None:
    path = run / "out/completions.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps(json.loads(first) | {"reward": 2.0}) + "\n", *others]))


def a_mean_of_other_rewards(run: Path) -> None:
    for name in ("out", "at_kill"):
        steps_changed(run / name / "metrics.jsonl", lambda step: step["metrics"].update(reward_mean=0.5))


def a_step_that_learns_nothing(run: Path) -> None:
    for name in ("out", "at_kill"):
        steps_changed(run / name / "metrics.jsonl", lambda step: step.update(gradient_norm=0.0))


DRAWN_BROKEN: dict[Callable[[Path], None], set[str]] = {
    a_rollout_written_twice: {"completions_are_whole"},
    another_reward: {"completions_are_whole"},
    a_mean_of_other_rewards: {"completions_are_whole"},
    a_step_that_learns_nothing: {"losses_are_finite", "curve_is_golden"},
    a_loss_that_is_not_finite: {"losses_are_finite", "curve_is_golden"},
}


BROKEN: dict[Callable[[Path], None], set[str]] = {
    another_exit_code: {"ends_well"},
    a_run_cut_short: {"ends_well"},
    another_plan: {"plan_is_the_cells"},
    a_rank_less: {"world_is_as_asked"},
    another_device: {"world_is_as_asked"},
    a_rank_that_holds_everything: {"weights_are_shared_out"},
    a_loss_that_rises: {"loss_falls", "curve_is_golden"},
    a_loss_that_is_not_finite: {"loss_falls", "curve_is_golden"},
    another_last_digit_before_the_kill: {"resume_is_exact"},
    a_step_that_is_missing: {"resume_is_exact", "curve_is_golden"},
    a_curve_of_its_own: {"curve_is_golden"},
    another_byte_in_a_checkpoint: {"checkpoint_is_committed"},
    a_save_left_half_way: {"checkpoint_is_committed"},
    an_export_of_the_base_model: {"export_reloads"},
    an_adapter_that_computes_something_else: {"export_reloads"},
    an_export_whose_logits_are_not_finite: {"export_reloads"},
    a_process_left: {"nothing_leaks"},
    too_much_memory: {"memory_is_in_budget"},
    a_phase_that_hangs: {"cost_is_in_budget"},
    a_phase_that_fills_the_disk: {"cost_is_in_budget"},
    a_phase_without_an_end: {"cost_is_in_budget"},
    no_hardware: {"hardware_is_known"},
    an_unknown_machine: {"hardware_is_known"},
    no_version_of_torch: {"hardware_is_known"},
    no_reload: {"export_reloads", "weights_are_shared_out"},
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda each: each.__name__)
def test_a_claim_fails_when_what_it_claims_is_not_so(ran: Path, tmp_path: Path, broken: Callable[[Path], None]) -> None:
    run = shutil.copytree(ran, tmp_path / "run")
    broken(run)
    judged = list(judge(Evidence(run), owed(CELL)))
    assert {each.name for each in judged if not each.holds} == BROKEN[broken]
    assert [each.name for each in judged] == list(CELL.claims)
    assert parse_verdict(write(verdict_of(Evidence(run), CELL, replay=""), tmp_path).read_bytes(), "").problem


@pytest.mark.parametrize("broken", DRAWN_BROKEN, ids=lambda each: each.__name__)
def test_a_claim_about_what_was_drawn_fails_when_it_is_not_so(
    drew: Path, tmp_path: Path, broken: Callable[[Path], None]
) -> None:
    run = shutil.copytree(drew, tmp_path / "run")
    broken(run)
    judged = list(judge(Evidence(run), owed(DRAWING)))
    assert {each.name for each in judged if not each.holds} == DRAWN_BROKEN[broken]
    assert [each.name for each in judged] == list(DRAWING.claims)
    assert parse_verdict(write(verdict_of(Evidence(run), DRAWING, replay=""), tmp_path).read_bytes(), "").problem


def test_every_claim_has_been_seen_to_fail() -> None:
    seen = set().union(*BROKEN.values(), *DRAWN_BROKEN.values())
    assert seen == CHECKS.keys() == {name for row in TABLES.recipes.values() for name in row.claims}


def test_a_verdict_shows_what_the_model_said_last(drew: Path) -> None:
    lines = [json.loads(line) for line in (drew / "out/completions.jsonl").read_text().splitlines()]
    shown = verdict_of(Evidence(drew), DRAWING, replay="")["completions"]
    assert shown == [{name: line[name] for name in ("prompt", "completion", "rewards")} for line in lines[-16:-12]]
    assert {line["step"] for line in lines[-16:]} == {14}
    assert all(each["rewards"].keys() == {"rewards.py:share"} for each in shown)
