"""Pairs of completions to one prompt, of which one was chosen over the other.

    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}

A string stands for one message: of the user as a prompt, of the assistant as a completion. Without a prompt, chosen and
rejected are whole conversations, and the messages with which both begin are the prompt. `messages` is another name of
`prompt`. Lines are read as strictly as conversations are; see `training.data.samples`.

With `"margin": 0.5`, by how much more chosen is worth; only a reward model learns from that.

Or a single completion that somebody found good or bad:

    {"prompt": [messages], "completion": [messages], "label": true}

Refused because nothing would be learned, or the wrong thing: completions that are the same, that do not end with the
assistant, or that answer nothing.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training.data.example import Example
from training.data.render import Renderer
from training.data.samples import (
    SKIP_HINT,
    Message,
    OnBadSample,
    RefusedError,
    Sample,
    SampleFile,
    parsed_message,
    read_lines,
    typed,
    unread_keys,
)
from training.errors import DataError

PROMPT_KEYS = ("prompt", "messages")
PAIR_KEYS = (*PROMPT_KEYS, "chosen", "rejected")
MARGIN = "margin_D"
"""The column with what the line of a pair has as its margin, 0 where it has none."""
LABELLED_KEYS = (*PROMPT_KEYS, "completion", "label")
DESIRABLE = "desirable_D"
"""The column of labelled completions: 1 for a good one, 0 for a bad one. `training.algorithms.kto` reads it."""


@dataclass(frozen=True)
class Pair:
    """Two conversations that begin with the same prompt."""

    chosen: Sample
    rejected: Sample
    margin: float | None = None
    """By how much more chosen is worth, 0 if nobody said; None if it was not asked for."""


@dataclass(frozen=True)
class Labelled:
    """A completion that is good or bad, and one that answers another prompt, to compare with."""

    own: Sample
    others: Sample
    is_desirable: bool


def read_labelled(path: str | Path, *, on_bad_sample: OnBadSample = "stop") -> SampleFile[Labelled]:
    """The labelled completions of a JSONL file, each beside the completion of the sample half a file away.

    Raises:
        SampleError: a line is not a labelled completion.
        DataError: the file cannot be read, or has fewer than two usable lines.
    """
    file = read_lines(path, on_bad_sample, _labelled)
    samples, half = file.samples, len(file.samples) // 2
    if not half:
        raise DataError(
            str(path),
            got="one usable sample",
            expected="two or more, since each is compared with the completion of another",
            hint=file.first_skipped or "add samples",
        )
    paired = []
    for own, other in zip(samples, [*samples[half:], *samples[:half]], strict=True):
        prompt, completion = own.own.messages[: own.own.num_given], other.own.messages[other.own.num_given :]
        paired.append(replace(own, others=replace(own.own, messages=(*prompt, *completion))))
    return replace(file, samples=paired)


def labelled_example(renderer: Renderer, sample: Labelled) -> Example:
    """One example of two documents: the completion, and the other's after the same prompt."""
    both = joined(renderer.example(sample.own), renderer.example(sample.others))
    return replace(both, columns={DESIRABLE: np.full(2, sample.is_desirable, dtype=np.float32)})


def _labelled(value: dict[str, Any], where: str) -> tuple[Labelled, list[str]]:
    unread = unread_keys(value, LABELLED_KEYS)
    own = conversation(prompt_of(value), completion_of(value, "completion"), "completion", where)
    label = typed(value.get("label"), bool, "label is", "true or false", "label is not a boolean")
    return Labelled(own, own, label), unread


def read_pairs(path: str | Path, *, on_bad_sample: OnBadSample = "stop", with_margin: bool = False) -> SampleFile[Pair]:
    """The pairs of a JSONL file.

    Args:
        path: the file.
        on_bad_sample: what to do with a line that is no pair.
        with_margin: reads `margin`, which is otherwise a key like any that nobody knows.

    Raises:
        SampleError: a line is not a pair to learn from.
        DataError: the file cannot be read, or has no usable line.
    """
    return read_lines(path, on_bad_sample, partial(_pair, with_margin=with_margin))


def pair_example(renderer: Renderer, pair: Pair) -> Example:
    """One example of two documents, chosen and rejected, in which the completions count."""
    both = joined(renderer.example(pair.chosen), renderer.example(pair.rejected))
    return both if pair.margin is None else replace(both, columns={MARGIN: np.full(2, pair.margin, dtype=np.float32)})


def joined(*documents: Example) -> Example:
    """The examples as documents of one, which is packed whole."""
    lengths = np.array([len(each) for each in documents])
    return Example(
        np.concatenate([each.token_ids for each in documents]),
        np.concatenate([each.weights for each in documents]),
        documents[0].where,
        (np.cumsum(lengths) - lengths).astype(np.int32),
    )


def _pair(value: dict[str, Any], where: str, *, with_margin: bool) -> tuple[Pair, list[str]]:
    unread = unread_keys(value, (*PAIR_KEYS, "margin") if with_margin else PAIR_KEYS)
    prompt = prompt_of(value)
    sides = [completion_of(value, key) for key in ("chosen", "rejected")]
    if not prompt:
        num_shared = next(
            (at for at, (one, other) in enumerate(zip(*sides, strict=False)) if one != other), min(map(len, sides))
        )
        prompt, sides = sides[0][:num_shared], [side[num_shared:] for side in sides]
    if sides[0] == sides[1]:
        raise RefusedError(
            "chosen is rejected",
            got="chosen and rejected are the same",
            expected="two completions",
            hint=f"remove the line, {SKIP_HINT}",
        )
    chosen, rejected = (
        conversation(prompt, side, key, where) for key, side in zip(("chosen", "rejected"), sides, strict=True)
    )
    return Pair(chosen, rejected, _margin(value) if with_margin else None), unread


def _margin(value: dict[str, Any]) -> float:
    margin = value.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin) or margin < 0:
        raise RefusedError(
            "bad margin",
            got=f"margin is {margin!r}",
            expected="a number of at least 0",
            hint=f"leave it out, swap chosen and rejected, {SKIP_HINT}",
        )
    return float(margin)


def prompt_of(value: dict[str, Any]) -> tuple[Message, ...]:
    """The messages before the completion; none if the sample has no prompt."""
    present = [key for key in PROMPT_KEYS if key in value]
    if len(present) > 1:
        raise RefusedError(
            "both prompt and messages",
            got="the sample has both 'prompt' and 'messages'",
            expected="one of the two",
            hint=f"remove one of them, {SKIP_HINT}",
        )
    return _messages(value[present[0]], present[0], "user") if present else ()


def completion_of(value: dict[str, Any], key: str) -> tuple[Message, ...]:
    """The messages under the key."""
    if key not in value:
        raise RefusedError(
            f"no {key}",
            got=f"the sample has no {key}",
            expected=f"a string or a list of messages under '{key}'",
            hint=f'rename another column to "{key}", {SKIP_HINT}',
        )
    return _messages(value[key], key, "assistant")


def conversation(prompt: tuple[Message, ...], completion: tuple[Message, ...], key: str, where: str) -> Sample:
    """The prompt and what answers it, of which the assistant's turns count."""
    if not prompt or not completion or completion[-1].role != "assistant":
        what = (
            "answers no prompt" if not prompt else "is empty" if not completion else "does not end with the assistant"
        )
        raise RefusedError(
            f"{key} {what}",
            got=f"{key} {what}",
            expected="a prompt, and after it turns of which the last is the assistant's",
            hint=f"complete the line, {SKIP_HINT}",
        )
    return Sample((*prompt, *completion), unmask=False, where=where, num_given=len(prompt))


def _messages(value: Any, key: str, role: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    listed = typed(value, list, f"{key} is", "a string or a list of messages", f"{key} is not a list")
    return tuple(parsed_message(each, f"message {number} of {key}") for number, each in enumerate(listed, start=1))
