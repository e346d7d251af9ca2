"""Prompts: what a model is asked, and what a reward wants to know of the right answer.

    {"prompt": "1+2", "answer": 3}      {"prompt": [{"role": "system", …}, {"role": "user", …}], "pattern": "…"}

A string stands for one message of the user or, as plain text, for a beginning to go on from. Every other key of the
line is a column, which rewards get under its name.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.data.example import Example
from training.data.samples import (
    SKIP_HINT,
    Message,
    OnBadSample,
    RefusedError,
    SampleFile,
    parsed_message,
    read_lines,
    typed,
)


@dataclass(frozen=True)
class PromptSample:
    """One line."""

    messages: tuple[Message, ...]
    """Of a string, one of the user."""
    given: Any
    """The prompt as the line has it."""
    columns: Mapping[str, Any]
    where: str


@dataclass(frozen=True, eq=False)
class Prompt(Example):
    """The token ids of a prompt, up to where the completion begins. Its weights stand for nothing."""

    given: Any = None
    """The prompt as the line has it."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """The line's other keys."""


def read_prompts(path: str | Path, *, on_bad_sample: OnBadSample = "stop") -> SampleFile[PromptSample]:
    """The prompts of a JSONL file.

    Raises:
        SampleError: a line is not a prompt.
        DataError: the file cannot be read, or has no usable line.
    """
    return read_lines(path, on_bad_sample, _prompt)


def render_prompt(tokenizer: Any, sample: PromptSample, *, is_chat: bool) -> Prompt:
    """The prompt's tokens, up to where the assistant speaks, or where the text goes on."""
    if is_chat:
        messages = [message.as_template_input() for message in sample.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        text = (tokenizer.bos_token or "") + sample.given
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    weights = np.ones(len(ids), dtype=np.float32)
    weights[0] = 0.0
    # In the digest of what is trained on: another answer to the same prompt is another sample.
    said = json.dumps(dict(sample.columns), sort_keys=True).encode()
    column = np.frombuffer(hashlib.sha256(said).digest()[:8], dtype=np.int64)
    return Prompt(
        np.array(ids, dtype=np.int32),
        weights,
        sample.where,
        columns={"others_D": column},
        given=sample.given,
        others=sample.columns,
    )


def render_reply(tokenizer: Any, messages: list[dict[str, Any]], *, ended_by: int, is_chat: bool) -> list[int]:
    """The tokens between a turn of the assistant and its next one, in which somebody replies.

    Args:
        tokenizer: whose template renders them.
        messages: the reply.
        ended_by: the token with which the turn before ended; if the template ends a turn so, it is there already.
        is_chat: False takes what messages say as it is.
    """
    if is_chat:
        begun = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _TURN}]
        text = tokenizer.apply_chat_template([*begun, *messages], tokenize=False, add_generation_prompt=True)
        text = text.rpartition(_TURN)[2].removeprefix(tokenizer.decode([ended_by]))
    else:
        text = "".join(str(each["content"]) for each in messages)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


_TURN = "\x02turn\x03"
"""Stands for what the assistant said, in a rendering of what comes after it."""


def _prompt(value: dict[str, Any], where: str) -> tuple[PromptSample, list[str]]:
    if "prompt" not in value:
        raise RefusedError(
            "no prompt",
            got="the sample has no prompt",
            expected="a string or a list of messages under 'prompt'",
            hint=f"rename the column, {SKIP_HINT}",
        )
    given = value["prompt"]
    listed = [{"role": "user", "content": given}] if isinstance(given, str) else given
    listed = typed(listed, list, "prompt is", "a string or a list of messages", "bad prompt")
    messages = tuple(parsed_message(message, f"message {number}") for number, message in enumerate(listed, start=1))
    if not messages or messages[-1].role == "assistant" or not messages[-1].content:
        raise RefusedError(
            "nothing to answer",
            got="the prompt is empty or ends with the assistant",
            expected="something to answer at its end",
            hint=f"end it with a message of the user, {SKIP_HINT}",
        )
    columns = {name: each for name, each in value.items() if name != "prompt"}
    if taken := {"completion", "environment", "turns"} & columns.keys():
        raise RefusedError(
            "a column with a taken name",
            got=f"the sample has the key '{taken.pop()}', which rewards get from the model",
            expected="another name",
            hint=f"rename the column, {SKIP_HINT}",
        )
    return PromptSample(messages, given, columns, where), []
