"""What is learned is marked, and a terminal gets a few lines of it, whatever the data are."""

import numpy as np
import pytest

from tests.support.chats import TWO_TURNS, chat
from training.data.example import Example
from training.data.render import Renderer, render_blocks
from training.data.samples import Message, Sample, TextSample
from training.data.show import NUM_CHARACTERS, brief, show
from training.models.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def rendered(*messages: dict[str, str]) -> Example:
    return Renderer(TOKENIZER).example(Sample(tuple(Message(**each) for each in messages), False, "chat.jsonl:1"))


def test_a_conversation_is_a_line_in_which_line_feeds_are_seen() -> None:
    assert brief(TOKENIZER, rendered(*TWO_TURNS["messages"])) == (
        "<|begin|><|turn|>system⏎Be brief.<|end|>⏎<|turn|>user⏎What is 2 + 2?<|end|>⏎<|turn|>assistant⏎⟦4.<|end|>⟧⏎"
        "<|turn|>user⏎Und auf Französisch? 🇫🇷<|end|>⏎<|turn|>assistant⏎⟦Quatre.<|end|>⟧⏎"
    )


def test_long_stretches_lose_their_middle_and_what_is_learned_stays_in_sight() -> None:
    text = brief(TOKENIZER, rendered(*chat("long " * 500 + "question?", "long " * 500 + "answer.")["messages"]))
    beginning, end = text.split("⟦")
    assert beginning.startswith("<|begin|><|turn|>user⏎long long long ")
    assert beginning.endswith("question?<|end|>⏎<|turn|>assistant⏎")
    assert end.startswith("long long long ")
    assert end.endswith(" long answer.<|end|>⟧⏎")
    assert beginning.count(" … ") == end.count(" … ") == 1
    assert len(text) < 250


def test_many_turns_are_cut_off() -> None:
    many = [each for number in range(99) for each in chat(f"{number}?", f"{number}.")["messages"]]
    text = brief(TOKENIZER, rendered(*many))
    assert text.endswith(" …")
    assert len(text) == NUM_CHARACTERS + 2
    assert "⟦0.<|end|>⟧" in text


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    text = brief(TOKENIZER, rendered(*chat("\x1b[31mred\r", "a\tb\x07")["messages"]))
    assert r"\x1b[31mred\r<|end|>" in text
    assert r"⟦a\tb\x07<|end|>⟧" in text


@pytest.mark.parametrize("has_weights", [True, False])
def test_documents_of_one_example_are_lines_and_the_first_two_are_shown(has_weights: bool) -> None:
    documents = [TextSample(text, "book.jsonl:1") for text in ("abc", "d", "e")]
    (block,) = render_blocks(TOKENIZER, documents, tokens_per_block=99)
    lines = ["<|begin|>⟦abc<|end|>⟧", "<|begin|>⟦d<|end|>⟧", "<|begin|>⟦e<|end|>⟧"]
    assert show(TOKENIZER, block) == "".join(lines)
    expected = "\n".join(lines[:2])
    got = brief(TOKENIZER, block, has_weights=has_weights)
    assert got == (expected if has_weights else expected.replace("⟦", "").replace("⟧", ""))


def test_a_weight_of_any_size_marks() -> None:
    ids = np.array(TOKENIZER("abcd", add_special_tokens=False)["input_ids"], dtype=np.int32)
    assert show(TOKENIZER, Example(ids, np.array([0, 0.1, 0, 7], dtype=np.float32), "x:1")) == "a⟦b⟧c⟦d⟧"
