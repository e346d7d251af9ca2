"""Small corpora, as values and as files. Standard library only, so that light tests stay light."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TWO_TURNS: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": "Und auf Französisch? 🇫🇷"},
        {"role": "assistant", "content": "Quatre."},
    ]
}
"""A system message, two turns, and characters of more than one byte."""

WITH_TOOL: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Weather in Oslo?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I should look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "content": '{"celsius": -3}', "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "Minus three degrees."},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
}
"""Reasoning, a call as services send it, and the tool's answer."""


def chat(question: str, answer: str, **keys: Any) -> dict[str, Any]:
    """A conversation of one turn."""
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **keys,
    }


def sums(num: int) -> list[dict[str, Any]]:
    """`num` conversations that a model can learn: each asks for a sum and answers it."""
    return [chat(f"{n % 7} + {n % 5}?", str(n % 7 + n % 5)) for n in range(num)]


def preferred_sums(num: int) -> list[dict[str, Any]]:
    """`num` pairs of answers to the same: the sum is chosen over another number."""
    return [
        {"prompt": f"{n % 7} + {n % 5}?", "chosen": str(n % 7 + n % 5), "rejected": str((3 * n + 1) % 11 + 20)}
        for n in range(num)
    ]


def labelled_sums(num: int) -> list[dict[str, Any]]:
    """`num` answers, every other one right and labelled so."""
    return [
        {"prompt": pair["prompt"], "completion": pair["rejected" if n % 2 else "chosen"], "label": n % 2 == 0}
        for n, pair in enumerate(preferred_sums(num))
    ]


def asked_sums(num: int) -> list[dict[str, Any]]:
    """`num` prompts that ask for a sum."""
    return [{"prompt": f"{n % 7} + {n % 5}?", "answer": str(n % 7 + n % 5)} for n in range(num)]


def write_jsonl(path: Path, lines: Iterable[dict[str, Any] | str | bytes]) -> Path:
    """Writes a line for each value, dictionaries as JSON, strings and bytes as they are; returns the path."""
    with open(path, "wb") as file:
        for line in lines:
            text = json.dumps(line, ensure_ascii=False) if isinstance(line, dict) else line
            file.write((text.encode() if isinstance(text, str) else text) + b"\n")
    return path
