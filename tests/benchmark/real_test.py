"""The real SmolLM2-135M learns from real conversations, and procedural reasoning that a verifier judges."""

from pathlib import Path

import pytest

from tests.benchmark.holding import hold
from tests.benchmark.real_cells import CHAT_LORA, REASONING_DPO, REASONING_GRPO, REASONING_LORA
from tests.benchmark.tasks.chat import chat_data
from tests.benchmark.tasks.reasoning import mark, reasoning_data
from tests.benchmark.tasks.task import Data


def test_it_learns_how_people_chat_as_well_as_before(tmp_path: Path) -> None:
    hold(CHAT_LORA, tmp_path)


def test_it_learns_to_reason_as_well_as_before(tmp_path: Path) -> None:
    hold(REASONING_LORA, tmp_path)


def test_rewards_improve_its_reasoning_as_much_as_before(tmp_path: Path) -> None:
    hold(REASONING_GRPO, tmp_path)


def test_pairs_improve_its_reasoning_as_much_as_before(tmp_path: Path) -> None:
    hold(REASONING_DPO, tmp_path)


@pytest.mark.parametrize("data", [chat_data(0), chat_data(1), reasoning_data(0), reasoning_data(1)])
def test_nothing_held_out_is_trained_on(data: Data) -> None:
    def questions(lines: list[dict[str, list[dict[str, str]]]]) -> set[tuple[str, ...]]:
        return {tuple(message["content"] for message in line["messages"][:-1]) for line in lines}

    assert not questions(data.training) & questions(data.held_out)
    asked = {problem.question for problem in data.problems}
    assert not {line["prompt"] for line in (*data.prompts, *data.pairs)} & asked
    assert {line["prompt"] for line in data.held_out_pairs} <= asked


def test_every_right_answer_gets_full_marks_from_its_judge() -> None:
    data = reasoning_data(0)
    for problem, line in zip(data.problems, data.held_out, strict=True):
        assert problem.score(line["messages"][1]["content"]) == 1.0
        assert problem.score("the answer is unclear") < 1.0
    for prompt, line in zip(data.prompts, data.training, strict=True):
        columns = {name: each for name, each in prompt.items() if name != "prompt"}
        assert mark(prompt["prompt"], line["messages"][1]["content"], **columns) == 1.0
    for problem, pair in zip(data.problems, data.held_out_pairs, strict=True):
        assert problem.score(pair["chosen"]) == 1.0 > problem.score(pair["rejected"])
