"""The benchmark's road from a cell to a verdict, with the real command line and next to no training."""

import json
from dataclasses import replace
from pathlib import Path

from tests.benchmark.baselines import MISSED_REWARD
from tests.benchmark.cells import ARITHMETIC_GRPO, ARITHMETIC_LORA
from tests.benchmark.runs import run
from tests.benchmark.tasks.arithmetic import ARITHMETIC, arithmetic_data
from tests.benchmark.tasks.task import Data
from tools.ci.cells import parse_verdict

BRIEF = ("--num-steps", "4", "--samples-per-step", "8")


def few(seed: int) -> Data:
    """Enough to run everything once."""
    data = arithmetic_data(seed)
    return replace(
        data,
        training=data.training[:32],
        held_out=data.held_out[:4],
        problems=data.problems[:4],
        prompts=data.prompts[:8],
    )


TASK = replace(ARITHMETIC, make_data=few, num_new_tokens_max=4)


def test_a_run_leaves_a_verdict_that_says_what_was_learned(tmp_path: Path) -> None:
    cell = replace(ARITHMETIC_LORA, task=TASK, warm_up=(*ARITHMETIC_LORA.settings[:6], *BRIEF))
    content = run(cell, 1, tmp_path, target="//x:y", extra=BRIEF)
    verdict = parse_verdict(json.dumps(content), "verdict")
    assert verdict.cell.name == "arithmetic_lora_seed_1"
    assert content["benchmark"] == "arithmetic_lora"
    assert verdict.cell.features == ("lora",)
    assert [point.step for point in verdict.curve] == [1, 2, 3, 4]
    assert [phase.name for phase in verdict.phases] == ["set_up", "warm_up", "train", "judge"]
    assert content["metrics"].keys() == {"calibration_error", "exact_match", "pass_at_4", "perplexity", "win_rate"}
    assert content["curve_is"] == "loss"
    assert {claim.name: claim.holds for claim in verdict.claims} == {"learns": True, "least_exact_match": False}
    assert content["status"] == "failed", "four steps do not keep the task's promise, and that is said"
    assert content["metrics"]["perplexity"] < content["metrics_before"]["perplexity"]


def test_learning_from_rewards_leaves_a_curve_of_rewards(tmp_path: Path) -> None:
    # Random weights get no sum right: the promise is broken, and there is nothing for the run to say but that.
    cell = replace(ARITHMETIC_GRPO, task=TASK, warm_up=None)
    extra = ("--num-steps", "2", "--samples-per-step", "16", "--completion-tokens-max", "4")
    content = run(cell, 1, tmp_path, target="//x:y", extra=extra)
    verdict = parse_verdict(json.dumps(content), "verdict")
    assert verdict.cell.name == "arithmetic_grpo_full_seed_1"
    assert content["curve_is"] == MISSED_REWARD
    assert [point.loss for point in verdict.curve] == [1.0, 1.0]
    assert [phase.name for phase in verdict.phases] == ["set_up", "train", "judge"]
    claims = {claim.name: claim.holds for claim in verdict.claims}
    assert claims == {"learns": False, "least_exact_match": False, "gain_exact_match": False}
