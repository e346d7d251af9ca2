"""The benchmark's road from a cell to a verdict, with the real command line and next to no training."""

import json
from dataclasses import replace
from pathlib import Path

from tests.benchmark.cells import ARITHMETIC_LORA
from tests.benchmark.rule import HIGHER_IS_BETTER
from tests.benchmark.runs import run
from tests.benchmark.tasks.arithmetic import ARITHMETIC, arithmetic_data
from tests.benchmark.tasks.task import Data
from tools.ci.cells import parse_verdict

BRIEF = ("--num-steps", "4", "--samples-per-step", "8")


def few(seed: int) -> Data:
    """Enough to run everything once."""
    data = arithmetic_data(seed)
    return Data(data.training[:32], data.held_out[:4], data.problems[:4])


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
    assert content["metrics"].keys() == HIGHER_IS_BETTER.keys()
    assert {claim.name: claim.holds for claim in verdict.claims} == {"learns": True, "least_exact_match": False}
    assert content["status"] == "failed", "four steps do not keep the task's promise, and that is said"
    assert content["metrics"]["perplexity"] < content["metrics_before"]["perplexity"]
