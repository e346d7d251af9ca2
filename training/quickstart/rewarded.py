"""The second act: the model that has been tuned is rewarded for something that can be checked, by GRPO.

What it is rewarded for is a regular expression, so that anybody can say whether an answer deserves it. The reward is
told of prompts that are never learned from, before and after, with one answer drawn for each by the same dice.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from training.data.prompts import PromptSample, render_prompt
from training.data.samples import Message
from training.metrics.progress import duration
from training.metrics.records import StepRecord, read_records
from training.models.load import load_model
from training.quickstart.answers import NOTHING, readable
from training.quickstart.folder import State
from training.quickstart.report import Rewarded, relative
from training.quickstart.shell import say, train, typed
from training.quickstart.task import Data, Goal, Task, write_jsonl
from training.rollout.generate import Sampling, generate, stop_ids

REWARD = "training.rollout.verifiers:matches"
SHARE_OF_SECONDS = 0.5
"""Of the time that the first act had."""

NUM_STEPS_MIN = 2
NUM_SHOWN = 3
FOLDER = "rewarded"


@dataclass(frozen=True)
class Drawn:
    """One answer to each prompt, and what drawing them took."""

    texts: tuple[str, ...]
    num_tokens: int
    """Of prompts and answers together."""
    seconds: float


def second_act(task: Task, folder: Path, data: Data, state: State) -> tuple[State, Rewarded | None]:
    """What is left of it to do in the folder, and what came of it; None if it was stopped, and saved.

    Raises:
        PlumblineError: of the branch that says what was wrong; see `training.errors`.
    """
    goal, tuned = task.goal, folder / "run" / task.trained
    write_jsonl(folder / "prompts.jsonl", ({"prompt": each, "pattern": goal.pattern} for each in data.asked))
    say("goal", f"{goal.wanted}: {len(data.asked_held_out)} held-out {goal.prompts_are} to the tuned model …")
    if state.rewarded_steps is None:
        drawn = drawn_by(task, tuned, data.asked_held_out, seed=state.seed)
        num_steps = num_steps_for(goal, folder, drawn, seconds=state.seconds * SHARE_OF_SECONDS)
        state = replace(state, drawn=drawn.texts, rewarded_steps=num_steps)
        state.write(folder)
    assert state.drawn is not None
    words = grpo_words(task, folder, state)
    say("training", f"{state.rewarded_steps} steps in about {duration(state.seconds * SHARE_OF_SECONDS)}, by:")
    print(f"\n  {typed(words)}\n", flush=True)
    summary = train(words)
    if not summary.is_finished:
        print(f"\n{summary.num_steps} of {summary.num_steps_planned} steps are saved.")
        return state, None
    say("after", f"the same {goal.prompts_are} to the rewarded model …")
    after = drawn_by(task, folder / FOLDER / task.trained, data.asked_held_out, seed=state.seed)
    return state, findings(goal, folder, data, before=state.drawn, after=after.texts)


def reward_of(goal: Goal, texts: Sequence[str]) -> float:
    """Share of the texts that are as wanted."""
    return fmean(float(re.fullmatch(goal.pattern, each, re.DOTALL) is not None) for each in texts)


def drawn_by(task: Task, directory: Path, prompts: Sequence[str], *, seed: int) -> Drawn:
    """Answers of an exported model, each drawn at temperature 1 with a generator of its own, as in training."""
    loaded = load_model(str(directory), needs_chat_template=task.is_chat)
    samples = [PromptSample((Message("user", each),), each, {}, "held out") for each in prompts]
    given = [render_prompt(loaded.tokenizer, each, is_chat=task.is_chat).token_ids for each in samples]
    began = time.perf_counter()
    completions = generate(
        loaded.model,
        given,
        sampling=Sampling(1.0, 1.0, task.goal.num_new_tokens_max, stop_ids(loaded.model, loaded.tokenizer)),
        seeds=[seed + number for number in range(len(prompts))],
        device=torch.device("cpu"),
    )
    seconds = time.perf_counter() - began
    texts = [str(loaded.tokenizer.decode(each.token_ids, skip_special_tokens=True)) for each in completions]
    return Drawn(tuple(texts), sum(map(len, given)) + sum(len(each.token_ids) for each in completions), seconds)


def num_steps_for(goal: Goal, folder: Path, drawn: Drawn, *, seconds: float) -> int:
    """As many steps as about fit the time: drawing takes what it took just now, learning what it took before."""
    records = (each for each in read_records(folder / "run/metrics.jsonl") if isinstance(each, StepRecord))
    tokens_per_second = max(each.tokens_per_second for each in records)
    seconds_per_sample = (drawn.seconds + drawn.num_tokens / tokens_per_second) / len(drawn.texts)
    samples_per_step = int(goal.settings[goal.settings.index("--samples-per-step") + 1])
    return max(NUM_STEPS_MIN, round(seconds / (seconds_per_sample * samples_per_step)))


def grpo_words(task: Task, folder: Path, state: State) -> list[str]:
    """The command line of the run, from `grpo` on."""
    model, prompts, out = (relative(folder / each) for each in (f"run/{task.trained}", "prompts.jsonl", FOLDER))
    return [
        *("grpo", "--model", model, "--data", prompts, "--out", out, "--rewards", f'["{REWARD}"]'),
        *("--completion-tokens-max", str(task.goal.num_new_tokens_max), *task.goal.settings),
        *("--num-steps", str(state.rewarded_steps), "--seed", str(state.seed), "--device", "cpu"),
    ]


def findings(goal: Goal, folder: Path, data: Data, *, before: Sequence[str], after: Sequence[str]) -> Rewarded:
    """What it came to."""
    shown = range(min(NUM_SHOWN, len(before)))
    return Rewarded(
        title=goal.title,
        wanted=goal.wanted,
        held_out=f"{len(data.asked_held_out)} held-out {goal.prompts_are}",
        reward_before=reward_of(goal, before),
        reward_after=reward_of(goal, after),
        records=tuple(read_records(folder / FOLDER / "metrics.jsonl")),
        prompts=[data.asked_held_out[at] for at in shown],
        before=[readable(before[at]) or NOTHING for at in shown],
        after=[readable(after[at]) or NOTHING for at in shown],
    )
