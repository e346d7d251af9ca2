from pathlib import Path

import pytest

from training.models.tiny import save_tiny
from training.quickstart.answers import CUT, NOTHING, answers, readable


@pytest.mark.parametrize("is_chat", [True, False])
def test_answers_are_the_same_each_time_and_one_for_each_prompt(tmp_path: Path, is_chat: bool) -> None:
    model = save_tiny(tmp_path / "model")
    once = answers(model, ["how are you?", "why?"], is_chat=is_chat, num_new_tokens_max=8)
    assert once == answers(model, ["how are you?", "why?"], is_chat=is_chat, num_new_tokens_max=8)
    assert len(once) == 2
    assert all(text.endswith(CUT) or len(text) < 8 for text in once)


def test_what_a_terminal_cannot_show_or_would_obey_becomes_a_dot() -> None:
    assert readable("a\x1b[31mb\x00\ufffd 😀 ü\nnext\n") == "a·[31mb·· 😀 ü\nnext"
    assert readable(" \n ") == "", f"which {NOTHING} stands for"
