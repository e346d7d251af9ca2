"""Real conversations between two people, as the chat samples that a user would write.

The source is the Chit-Chat data set (MIT): people who did not know each other, given a topic to talk about, each rating
the other afterwards. Whoever wrote first is the user here and the other one is the assistant. Nothing is rewritten.
Several messages in a row by one person are one turn, a line each, as they were typed.

Kept are conversations that were answered at all, that were not rated down, and of these the beginning: a few short
turns, so that two minutes of training see many people. Standard library only.
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import DataError
from training.quickstart.wheels import file_in_wheel

NUM_TURNS_MIN, NUM_TURNS_MAX = 4, 8
NUM_WORDS_OF_TURN_MAX = 40
RATING_MIN = 5.0
"""Mean of the ratings, which go from 1 to 10; 5 is what people gave who did not move the sliders."""

NUM_WORDS_OF_PROMPT_MIN, NUM_WORDS_OF_PROMPT_MAX = 5, 20

Turns = tuple[str, ...]


class Split(NamedTuple):
    """Conversations to train on and conversations held out; none is in both."""

    training: list[Turns]
    held_out: list[Turns]


def data_file() -> Path:
    """The data set inside its wheel; raises DataError if it is not installed."""
    return file_in_wheel("chitchat_dataset", "*.json", distribution="chitchat-dataset")


def read_conversations(path: Path) -> list[Turns]:
    """The usable beginnings of all conversations, each once, in the order of the file.

    Raises:
        DataError: the file cannot be read, is built in another way, or holds no usable conversation.
    """
    try:
        everything = json.loads(path.read_text(encoding="utf-8"))
        usable = [turns for each in everything.values() if (turns := _turns(each))]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            str(path),
            got=f"the conversations cannot be read ({type(error).__name__}: {error})",
            expected="the JSON of chitchat-dataset 0.9.0: {id: {messages: [[{text, sender}, …], …], ratings}}",
            hint="install the version that training/quickstart/requirements_lock.txt names",
        ) from error
    if not usable:
        raise DataError(
            str(path),
            got=f"none of {len(everything)} conversations is usable",
            expected=f"some of {NUM_TURNS_MIN} turns or more, rated {RATING_MIN:g} or better",
            hint="install the version that training/quickstart/requirements_lock.txt names",
        )
    return list(dict.fromkeys(usable))


def _turns(conversation: dict[str, Any]) -> Turns | None:
    """The first turns of a conversation, ending with the second person's; None if it is not to be learned from."""
    ratings = (conversation.get("ratings") or {}).values()
    if not ratings or sum(ratings) / len(ratings) < RATING_MIN:
        return None
    turns: list[str] = []
    speakers: list[str] = []
    for messages in conversation["messages"][:NUM_TURNS_MAX]:
        lines = [message["text"].strip() for message in messages]
        text = "\n".join(line for line in lines if line)
        if not text or len(text.split()) > NUM_WORDS_OF_TURN_MAX or "http" in text:
            break
        turns.append(text)
        speakers.append(messages[0]["sender"])
    alternate = all(speakers[at] != speakers[at + 1] for at in range(len(speakers) - 1)) and len(set(speakers)) == 2
    kept = len(turns) - len(turns) % 2
    return tuple(turns[:kept]) if alternate and kept >= NUM_TURNS_MIN else None


def split(conversations: Sequence[Turns], *, seed: int, num_training_max: int, num_held_out: int) -> Split:
    """Shuffles by seed, holds out the first, trains on those that follow. Whole conversations go to one side.

    Raises:
        DataError: there are too few to have both sides.
    """
    if len(conversations) <= num_held_out:
        raise DataError(
            "conversations",
            got=f"{len(conversations)} usable ones",
            expected=f"more than the {num_held_out} that are held out",
            hint="install the version of chitchat-dataset that training/quickstart/requirements_lock.txt names",
        )
    shuffled = sorted(conversations)
    random.Random(seed).shuffle(shuffled)
    return Split(shuffled[num_held_out:][:num_training_max], shuffled[:num_held_out])


def prompts(held_out: Iterable[Turns], num: int) -> list[tuple[str, str]]:
    """Opening questions of held-out conversations, each with what the other person answered.

    Openings of one line: they need no context to be understood, so that a reader can judge the answers.
    """
    asked = [(turns[0], turns[1]) for turns in held_out if turns[0].endswith("?") and "\n" not in turns[0]]
    fitting = (pair for pair in asked if NUM_WORDS_OF_PROMPT_MIN <= len(pair[0].split()) <= NUM_WORDS_OF_PROMPT_MAX)
    return list(fitting)[:num]


def sample(turns: Turns) -> dict[str, Any]:
    """The conversation as a line of chat JSONL, to be encoded."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]}
