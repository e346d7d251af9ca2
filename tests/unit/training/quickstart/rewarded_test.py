"""The second act: what a reward is, how many steps fit, what is typed, and which figure is of before."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from training.cli import expanded, parser, to_config
from training.config import GrpoConfig
from training.metrics.records import SCHEMA, StepRecord
from training.quickstart.folder import State
from training.quickstart.rewarded import FOLDER, REWARD, Drawn, findings, grpo_words, num_steps_for, reward_of
from training.quickstart.scratch import scratch_task
from training.quickstart.task import Data, Goal
from training.rollout.verifiers import matches

GOAL = Goal("It asks", r"[a-z ]+\?", "a question", "openings", ("--samples-per-step", "8", "--group-size", "4"), 12)
TASK = scratch_task()
STATE = State("from-scratch", seed=3, seconds=10, rewarded_steps=5)


def recorded(path: Path, *, seconds: float, num_tokens: int) -> None:
    """One step in a metrics file."""
    metrics = {"reward_mean": 0.5, "seconds_generating": 1.0}
    step = StepRecord(1, 0, 1.0, 1.0, 1e-3, 8, num_tokens, 10, 1, seconds, metrics)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": SCHEMA, "kind": "step", **asdict(step)}) + "\n")


def test_a_reward_is_the_share_that_the_pattern_matches_whole() -> None:
    texts = ["what?", "what? yes", "a\nb?", "1?"]
    assert reward_of(GOAL, texts) == 0.25
    assert reward_of(GOAL, texts) == sum(matches("", each, pattern=GOAL.pattern) for each in texts) / 4, (
        "as in training"
    )


def test_as_many_steps_as_fit_by_what_drawing_and_learning_took(tmp_path: Path) -> None:
    recorded(tmp_path / "run/metrics.jsonl", seconds=2.0, num_tokens=200)
    # A sample: 2 s / 4 to draw, 100 tokens / 4 at 100 tokens a second to learn: 0.75 s, and 6 s a step of eight.
    drawn = Drawn(("a", "b", "c", "d"), num_tokens=100, seconds=2.0)
    assert num_steps_for(GOAL, tmp_path, drawn, seconds=60.0) == 10
    assert num_steps_for(GOAL, tmp_path, drawn, seconds=1.0) == 2, "one step would show nothing"


def test_what_is_typed_is_a_run_of_grpo_with_the_goals_settings(tmp_path: Path) -> None:
    words = grpo_words(TASK, tmp_path, STATE)
    parsed = parser().parse_args(expanded(words))
    config = to_config(parsed[parsed.command], parsed.command)
    assert isinstance(config, GrpoConfig)
    assert config.rl.rewards == (REWARD,)
    assert config.rl.completion_tokens_max == TASK.goal.num_new_tokens_max
    assert (config.run.num_steps, config.run.seed, config.run.device) == (5, 3, "cpu")
    assert (config.data.kind, config.batch.samples_per_step) == ("text", 32)


def test_findings_tell_before_from_after(tmp_path: Path) -> None:
    recorded(tmp_path / FOLDER / "metrics.jsonl", seconds=2.0, num_tokens=200)
    data = Data([], [], [], "", asked=[], asked_held_out=["one", "two", "three", "four"])
    before, after = ["no", "no", "no", "why?"], ["why?", "what?", "no", "who?"]
    found = findings(GOAL, tmp_path, data, before=before, after=after)
    assert (found.reward_before, found.reward_after) == (0.25, 0.75)
    assert found.held_out == "4 held-out openings"
    assert (found.prompts, found.before, found.after) == (["one", "two", "three"], before[:3], after[:3])
    assert found.seconds == 3.0, "drawing counts as well"


@pytest.mark.parametrize("text", ["a line of small letters that ends.", "twelve chars."])
def test_the_goal_from_scratch_is_what_it_says(text: str) -> None:
    assert re.fullmatch(TASK.goal.pattern, text)
    for wrong in (text.removesuffix("."), text + ".", text.upper(), f"{text}\n", "too short."):
        assert not re.fullmatch(TASK.goal.pattern, wrong, re.DOTALL), wrong
