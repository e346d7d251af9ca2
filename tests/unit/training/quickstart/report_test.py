import math
from pathlib import Path

import pytest

from training.metrics.records import StepRecord
from training.quickstart.report import WIDTH, Findings, Rewarded, describe, relative, side_by_side
from training.quickstart.task import Prompt

STEP = StepRecord(
    step=1,
    epoch=0,
    loss=0.1,
    gradient_norm=1.0,
    learning_rate=1e-3,
    num_samples=16,
    num_tokens=600,
    num_weighted_tokens=200,
    num_microbatches=1,
    seconds=2.0,
    metrics={"reward_mean": 0.5, "seconds_generating": 28.5},
)
REWARDED = Rewarded(
    title="It is rewarded",
    wanted="a question",
    held_out="32 held-out openings",
    reward_before=0.25,
    reward_after=0.75,
    records=[STEP, STEP],
    prompts=["hi"],
    before=["hello"],
    after=["you?"],
)
FOUND = Findings(
    title="A model learns",
    loss_unit="nats per token of the answers",
    held_out="24 conversations",
    loss_before=4.0,
    loss_after=4.0 - math.log(2),
    num_steps=50,
    num_tokens=30_000,
    seconds=120.0,
    prompts=[Prompt("how are you?", "good, u?"), Prompt("why?")],
    before=["As an assistant I have no feelings. " * 4, "Because."],
    after=["good 😀\nyou?", "idk"],
    losses="",
    rewarded=REWARDED,
    files={"q/curves.png": "both losses"},
    commands={"your own data": "python -m training sft"},
)


def test_the_report_says_what_was_learned_in_units() -> None:
    text = describe(FOUND)
    assert "50 steps, 30,000 tokens in 2m 00s (250 tokens/s)" in text
    assert "4.00 before, 3.31 after (nats per token of the answers; lower is better)" in text
    assert "on 24 conversations that training never saw: on average a token is now 2.0 times as likely" in text
    assert "q/curves.png" in text
    assert "    python -m training sft" in text


def test_a_loss_that_did_not_fall_is_not_praised() -> None:
    text = describe(Findings(**{**vars(FOUND), "loss_after": 4.5}))
    assert "4.00 before, 4.50 after" in text
    assert "likely" not in text


def test_without_a_plot_the_losses_are_a_table_and_that_is_said() -> None:
    assert "matplotlib" not in describe(FOUND)
    text = describe(Findings(**{**vars(FOUND), "losses": "step loss"}))
    assert "losses, since matplotlib is not there to draw a plot ──" in text
    assert "\nstep loss\n" in text


def test_the_second_act_says_what_it_rewarded_and_by_how_much_that_grew() -> None:
    text = describe(FOUND)
    assert "rewarded      a question\n" in text
    assert "2 steps of GRPO on 32 answers in 1m 01s" in text
    assert "0.25 before, 0.75 after, as a mean over 32 held-out openings, an answer drawn to each" in text
    (line,) = (each for each in text.splitlines() if "before: hello" in each)
    assert line.split("│")[1].strip() == "after: you?"


def test_answers_stand_side_by_side_below_their_prompt() -> None:
    lines = describe(FOUND).splitlines()
    at = lines.index("“how are you?”")
    assert lines[at + 1].split("│")[0].strip().startswith("before: As an assistant")
    assert lines[at + 1].split("│")[1].strip() == "after: good 😀"
    assert lines[at + 2].split("│")[1].strip() == "you?"
    assert "(a person: good, u?)" in lines


@pytest.mark.parametrize("left", ["word " * 40, "x" * 300, "", "two\n\nparts", "日本語 😀 " * 20])
def test_columns_stay_in_line_whatever_is_in_them(left: str) -> None:
    lines = side_by_side(left, "right " * 30)
    positions = {sum(2 if each in "日本語😀" else 1 for each in line.partition("│")[0]) for line in lines}
    assert len(positions) == 1
    assert all("│" in line and len(line) <= WIDTH for line in lines)


def test_paths_are_as_a_person_would_type_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative(tmp_path / "q" / "base") == "q/base"
    assert relative(tmp_path.parent) == str(tmp_path.parent)
