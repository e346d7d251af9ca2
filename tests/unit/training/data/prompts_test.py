"""A prompt is read strictly, and rendered up to where the answer begins."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.chats import write_jsonl
from training.data.prompts import read_prompts, render_prompt
from training.data.samples import SampleFile
from training.errors import SampleError
from training.models.tiny import tiny_tokenizer

USER, ASSISTANT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}


def read(tmp_path: Path, *lines: Any, **options: Any) -> SampleFile[Any]:
    return read_prompts(write_jsonl(tmp_path / "prompts.jsonl", lines), **options)


def test_a_string_is_a_message_of_the_user_and_other_keys_are_columns(tmp_path: Path) -> None:
    one, other = read(tmp_path, {"prompt": "2 + 2?", "answer": 4}, {"prompt": [USER]}).samples
    assert one.messages == other.messages
    assert (one.given, other.given) == ("2 + 2?", [USER])
    assert (one.columns, other.columns) == ({"answer": 4}, {})


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_prompt_ends_where_the_answer_begins(tmp_path: Path, is_chat: bool) -> None:
    tokenizer = tiny_tokenizer()
    (sample,) = read(tmp_path, {"prompt": "2 + 2?", "answer": 4}).samples
    text = tokenizer.decode(render_prompt(tokenizer, sample, is_chat=is_chat).token_ids)
    whole = tokenizer.apply_chat_template([USER, ASSISTANT], tokenize=False)
    assert text == (whole.partition("4")[0] if is_chat else f"{tokenizer.bos_token}2 + 2?")


def test_another_answer_to_the_same_prompt_is_another_sample(tmp_path: Path) -> None:
    answers = [
        render_prompt(tiny_tokenizer(), each, is_chat=True).columns["others_D"].tolist()
        for each in read(tmp_path, *({"prompt": "2 + 2?", "answer": number} for number in (4, 5, 4))).samples
    ]
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize(
    ("line", "said", "reason"),
    [
        (
            {"question": "2 + 2?"},
            "the sample has no prompt; expected a string or a list of messages under 'prompt'. hint: rename the column",
            "no prompt",
        ),
        (
            {"prompt": 4},
            "prompt is number; expected a string or a list of messages. hint: see the format in the help of --data",
            "bad prompt",
        ),
        *(
            (
                {"prompt": prompt},
                "the prompt is empty or ends with the assistant; expected something to answer at its end. hint: end it "
                "with a message of the user",
                "nothing to answer",
            )
            for prompt in ("", [], [USER, ASSISTANT])
        ),
        *(
            (
                {"prompt": "2 + 2?", name: 1},
                f"the sample has the key '{name}', which rewards get from the model; expected another name. hint: "
                "rename the column",
                "a column with a taken name",
            )
            for name in ("completion", "environment", "turns")
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_line_or_counted(
    tmp_path: Path, line: Any, said: str, reason: str
) -> None:
    with pytest.raises(SampleError) as raised:
        read(tmp_path, {"prompt": "1 + 1?"}, line)
    message = str(raised.value)
    assert message == f"{tmp_path}/prompts.jsonl:2: {said}, or skip bad samples with --on-bad-sample=skip"
    skipped = read(tmp_path, {"prompt": "1 + 1?"}, line, on_bad_sample="skip")
    assert skipped.skipped_reasons == {reason: 1}
    assert len(skipped.samples) == 1
