import json
from pathlib import Path
from typing import Any

import pytest

from training.errors import DataError
from training.quickstart.chitchat import (
    NUM_TURNS_MAX,
    NUM_WORDS_OF_TURN_MAX,
    Turns,
    prompts,
    read_conversations,
    sample,
    split,
)


def conversation(*texts: str, rating: float | None = 8, speakers: str = "ab") -> dict[str, Any]:
    """A conversation as the data set has it, its speakers in turn."""
    messages = [[{"text": text, "sender": speakers[at % len(speakers)]}] for at, text in enumerate(texts)]
    return {"messages": messages} | ({"ratings": {"witty": rating, "upbeat": rating}} if rating is not None else {})


def written(path: Path, *conversations: dict[str, Any]) -> Path:
    path.write_text(json.dumps({str(number): each for number, each in enumerate(conversations)}))
    return path


def numbered(num: int) -> list[Turns]:
    return [(f"question {number}?", "b", "c", f"answer {number}") for number in range(num)]


def test_conversations_end_with_the_second_person_and_are_cut_to_their_beginning(tmp_path: Path) -> None:
    file = written(tmp_path / "data.json", conversation(*"abcde"), conversation(*map(str, range(30))))
    assert read_conversations(file) == [tuple("abcd"), tuple(map(str, range(NUM_TURNS_MAX)))]


def test_messages_in_a_row_are_one_turn_with_a_line_each(tmp_path: Path) -> None:
    talk = conversation("hi", "hello", "how are you?", "fine")
    talk["messages"][0] += [{"text": " anyone here? ", "sender": "a"}, {"text": "", "sender": "a"}]
    assert read_conversations(written(tmp_path / "data.json", talk))[0][0] == "hi\nanyone here?"


def test_a_turn_that_is_long_empty_or_a_link_ends_the_conversation_before_it(tmp_path: Path) -> None:
    for bad in ("word " * (NUM_WORDS_OF_TURN_MAX + 1), "", "see http://example.com"):
        file = written(tmp_path / "data.json", conversation(*"abcd", bad, "f"))
        assert read_conversations(file) == [tuple("abcd")]


def test_what_is_not_to_be_learned_from_is_left_out(tmp_path: Path) -> None:
    good = conversation(*"abcd")
    file = written(
        tmp_path / "data.json",
        conversation("hello?"),
        conversation(*"wxyz", rating=None),
        conversation(*"wxyz", rating=4.9),
        conversation(*"wxyz", speakers="a"),
        conversation(*"wxyz", speakers="abc"),
        good,
        good,
    )
    assert read_conversations(file) == [tuple("abcd")], "and what is there twice counts once"


def test_roles_alternate_from_user_to_assistant() -> None:
    for turns in numbered(3):
        roles = [message["role"] for message in sample(turns)["messages"]]
        assert roles == ["user", "assistant"] * (len(turns) // 2)


@pytest.mark.parametrize("seed", range(5))
def test_the_split_is_one_of_whole_conversations_and_the_same_for_the_same_seed(seed: int) -> None:
    everything = numbered(100)
    once = split(everything, seed=seed, num_training_max=60, num_held_out=20)
    assert once == split(everything[::-1], seed=seed, num_training_max=60, num_held_out=20)
    assert once != split(everything, seed=seed + 1, num_training_max=60, num_held_out=20)
    assert (len(once.training), len(once.held_out)) == (60, 20)
    assert not set(once.training) & set(once.held_out)


def test_prompts_are_opening_questions_of_one_line_and_readable_length() -> None:
    fitting = "what do you like to eat?"
    held_out = [(opening, "pizza", "", "") for opening in ("you?", "I like to eat", f"hi\n{fitting}", fitting)]
    assert prompts(held_out, 4) == [(fitting, "pizza")]


def test_too_few_conversations_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="20 usable ones; expected more than the 20 that are held out"):
        split(numbered(20), seed=0, num_training_max=1, num_held_out=20)
    file = tmp_path / "data.json"
    for text in ("[]", "{", '{"1": {"messages": [["hi"]], "ratings": {"witty": 9}}}'):
        file.write_text(text)
        with pytest.raises(DataError, match=r"data\.json: the conversations cannot be read"):
            read_conversations(file)
    with pytest.raises(DataError, match="none of 1 conversations is usable"):
        read_conversations(written(file, conversation("hello?")))
    with pytest.raises(DataError, match="cannot be read"):
        read_conversations(tmp_path / "absent.json")
