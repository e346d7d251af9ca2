"""The report that a person reads at the end: answers side by side, losses, and what to type next.

Plain text of a fixed width, so that it looks the same on a terminal, in a file and in an issue. Standard library only.
"""

import itertools
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.metrics.progress import duration
from training.metrics.records import Record, StepRecord
from training.quickstart.task import Prompt

WIDTH = 100
GUTTER = " │ "


@dataclass(frozen=True)
class Rewarded:
    """What the second act has to say."""

    title: str
    wanted: str
    """What an answer must be to be rewarded."""
    held_out: str
    """What the reward is told of, and of how many."""
    reward_before: float
    reward_after: float
    records: Sequence[Record]
    """Those of its metrics.jsonl; at least one step."""
    prompts: Sequence[str]
    """A few of them, with an answer drawn before and one after."""
    before: Sequence[str]
    after: Sequence[str]

    @property
    def steps(self) -> list[StepRecord]:
        """The records of its steps."""
        return [each for each in self.records if isinstance(each, StepRecord)]

    @property
    def seconds(self) -> float:
        """What they took, drawing included, which a step's own seconds leave out."""
        return sum(each.seconds + each.metrics["seconds_generating"] for each in self.steps)


@dataclass(frozen=True)
class Findings:
    """What a finished run has to say."""

    title: str
    loss_unit: str
    held_out: str
    """What the held-out samples are and how many: 24 conversations."""
    loss_before: float
    loss_after: float
    num_steps: int
    num_tokens: int
    seconds: float
    prompts: Sequence[Prompt]
    before: Sequence[str]
    after: Sequence[str]
    losses: str
    """A table of losses, where no plot could be drawn; else empty."""
    rewarded: Rewarded
    files: dict[str, str]
    """Path of each thing that was written, and what it is."""
    commands: dict[str, str] = field(default_factory=dict)
    """What to type next, each under what it is for."""

    @property
    def times_as_likely(self) -> float:
        """How many times as probable each held-out token became, as a geometric mean: exp of the fall in loss."""
        return math.exp(self.loss_before - self.loss_after)


def describe(found: Findings) -> str:
    """The whole report."""
    word = found.loss_unit.split()[2]
    loss = (
        f"{found.loss_before:.2f} before, {found.loss_after:.2f} after ({found.loss_unit}; lower is better)"
        f"\n{'':14}on {found.held_out} that training never saw"
    )
    if found.loss_after < found.loss_before:
        loss += f": on average a {word} is now {found.times_as_likely:.1f} times as likely"
    speed = found.num_tokens / found.seconds if found.seconds > 0 else 0.0
    return "\n".join(
        [
            rule(found.title),
            "",
            f"{'trained':<14}{found.num_steps} steps, {found.num_tokens:,} tokens in {duration(found.seconds)} "
            f"({speed:,.0f} tokens/s)",
            f"{'held-out loss':<14}{loss}",
            "",
            answers_table(found.prompts, found.before, found.after),
            "",
            *([rule("losses, since matplotlib is not there to draw a plot"), found.losses, ""] if found.losses else []),
            *described_rewards(found.rewarded),
            "",
            rule("written"),
            *(f"{path:<42}  {what}" for path, what in found.files.items()),
            "",
            rule("try next"),
            *(f"{what}:\n    {command}" for what, command in found.commands.items()),
        ]
    )


def described_rewards(found: Rewarded) -> list[str]:
    """The second act."""
    num_drawn = sum(each.num_samples for each in found.steps)
    lines = [
        rule(found.title),
        "",
        f"{'rewarded':<14}{found.wanted}",
        f"{'trained':<14}{len(found.steps)} steps of GRPO on {num_drawn:,} answers in {duration(found.seconds)}",
        f"{'reward':<14}{found.reward_before:.2f} before, {found.reward_after:.2f} after, "
        f"as a mean over {found.held_out}, an answer drawn to each",
    ]
    for prompt, old, new in zip(found.prompts, found.before, found.after, strict=True):
        lines += ["", *_wrapped(f"“{prompt.strip()}”", WIDTH), *side_by_side(f"before: {old}", f"after: {new}")]
    return lines


def answers_table(prompts: Sequence[Prompt], before: Sequence[str], after: Sequence[str]) -> str:
    """Each prompt on lines of its own, and under it the answers before and after, side by side."""
    lines = [rule("the same held-out prompts, answered greedily" if prompts[0].person else "continued greedily")]
    for prompt, old, new in zip(prompts, before, after, strict=True):
        lines += ["", *_wrapped(f"“{prompt.text.strip()}”", WIDTH)]
        lines += side_by_side(f"before: {old}", f"after: {new}")
        if prompt.person:
            lines += _wrapped(f"(a person: {prompt.person})", WIDTH)
    return "\n".join(lines)


def side_by_side(left: str, right: str) -> list[str]:
    """Two texts in two columns, wrapped, the lines of a text kept apart."""
    width = (WIDTH - len(GUTTER) - 2) // 2
    rows = itertools.zip_longest(_wrapped(left, width), _wrapped(right, width), fillvalue="")
    return [f"  {one}{' ' * (width - _columns(one))}{GUTTER}{other}".rstrip() for one, other in rows]


def _columns(text: str) -> int:
    """Columns of a terminal that the text takes: an emoji or a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _wrapped(text: str, width: int) -> list[str]:
    parts: list[str] = []
    for line in text.splitlines() or [""]:
        # textwrap counts characters; half of the width holds them if each takes two columns.
        fitting = width if _columns(line) == len(line) else width // 2
        parts += textwrap.wrap(line, fitting) or [""]
    return parts


def rule(title: str) -> str:
    """A line across, with a title in it."""
    return f"── {title} ".ljust(WIDTH, "─")


def relative(path: Path) -> str:
    """The path as seen from where the person stands, if it is below there."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
