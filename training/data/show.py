"""An example as text in which one sees what is learned: the one look that finds a wrong template before a long run.

<|turn|>user⏎What is 2 + 2?<|end|>⏎<|turn|>assistant⏎⟦4.<|end|>⟧⏎
"""

import itertools
import re
from typing import TYPE_CHECKING

import numpy as np

from training.data.example import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "⟦", "⟧"
NUM_DOCUMENTS, NUM_CHARACTERS = 2, 400
"""Of what is shown in brief: two sides of a pair, each in a few lines of a terminal."""


def show(tokenizer: "PreTrainedTokenizerBase", example: Example) -> str:
    """The whole example, with what has a weight between ⟦ and ⟧."""
    return "".join(_document(tokenizer, example, begin, end) for begin, end in _documents(example))


def brief(tokenizer: "PreTrainedTokenizerBase", example: Example, *, has_weights: bool = True) -> str:
    """A line for each of the first documents, in which long stretches are cut short in their middle.

    Line feeds are ⏎ and what a terminal would obey is spelt out, as data may hold anything.

    Args:
        tokenizer: decodes it.
        example: of any kind.
        has_weights: False marks nothing, where weights stand for nothing.
    """
    lines = []
    for begin, end in _documents(example)[:NUM_DOCUMENTS]:
        text = _document(tokenizer, example, begin, end)
        if not has_weights:
            text = text.replace(OPEN, "").replace(CLOSE, "")
        text = "".join(each if each.isprintable() else _spelt(each) for each in text)
        text = re.sub(f"[^{OPEN}{CLOSE}]{{121,}}", lambda found: f"{found[0][:70]} … {found[0][-45:]}", text)
        lines.append(text if len(text) <= NUM_CHARACTERS else f"{text[:NUM_CHARACTERS]} …")
    return "\n".join(lines)


def _documents(example: Example) -> list[tuple[int, int]]:
    return list(itertools.pairwise([*example.document_starts.tolist(), len(example)]))


def _document(tokenizer: "PreTrainedTokenizerBase", example: Example, begin: int, end: int) -> str:
    counts = example.weights[begin:end] > 0
    borders = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), end - begin]
    pieces = []
    for first, last in itertools.pairwise(borders):
        text = str(tokenizer.decode(example.token_ids[begin + first : begin + last].tolist()))
        pieces.append(f"{OPEN}{text}{CLOSE}" if counts[first] else text)
    return "".join(pieces)


def _spelt(character: str) -> str:
    return "⏎" if character == "\n" else character.encode("unicode_escape").decode()
