"""A pair is read strictly, has one prompt on both sides, and counts its completions alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.chats import write_jsonl
from training.algorithms import kto, reward
from training.data.pairs import DESIRABLE, MARGIN, labelled_example, pair_example, read_labelled, read_pairs
from training.data.render import Renderer
from training.data.samples import Sample
from training.data.show import show
from training.errors import DataError, SampleError
from training.models.tiny import Template, tiny_tokenizer

USER, YES, NO = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5!"},
)
PAIR = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}


def read(tmp_path: Path, *lines: Any, **options: Any) -> Any:
    return read_pairs(write_jsonl(tmp_path / "pairs.jsonl", lines), **options)


def said(sample: Sample) -> list[str]:
    return [message.content for message in sample.messages]


@pytest.mark.parametrize(
    "line",
    [
        PAIR,
        {"messages": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5!"},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
    ],
    ids=["prompt", "messages", "strings", "whole conversations"],
)
def test_each_way_to_write_a_pair_is_the_same_pair(tmp_path: Path, line: dict[str, Any]) -> None:
    (pair,) = read(tmp_path, line).samples
    assert (said(pair.chosen), said(pair.rejected)) == (["2 + 2?", "4"], ["2 + 2?", "5!"])
    assert (pair.chosen.num_given, pair.rejected.num_given) == (1, 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "p", "chosen": "a"}, "the sample has no rejected"),
        ({"prompt": "p", "rejected": "a"}, "the sample has no chosen"),
        (PAIR | {"messages": [USER]}, "the sample has both 'prompt' and 'messages'"),
        (PAIR | {"rejected": [YES]}, "chosen and rejected are the same"),
        (PAIR | {"rejected": [USER]}, "rejected does not end with the assistant"),
        (PAIR | {"chosen": []}, "chosen is empty"),
        ({"chosen": "a", "rejected": "b"}, "chosen answers no prompt"),
        (PAIR | {"chosen": 3}, "chosen is number"),
        (PAIR | {"chosen": [{"role": "bot", "content": "?"}]}, "message 1 of chosen has role 'bot'"),
        (PAIR | {"rejectd": "b"}, "the sample has the key 'rejectd'"),
    ],
)
def test_a_line_that_is_no_pair_is_refused_by_its_number(tmp_path: Path, line: dict[str, Any], says: str) -> None:
    with pytest.raises(SampleError) as caught:
        read(tmp_path, PAIR, line)
    assert str(caught.value).startswith(f"{tmp_path / 'pairs.jsonl'}:2: {says}")
    file = read(tmp_path, PAIR, line, on_bad_sample="skip")
    assert (len(file.samples), file.num_skipped) == (1, 1)


def test_keys_of_others_are_counted(tmp_path: Path) -> None:
    assert read(tmp_path, PAIR | {"source": "x"}).ignored_keys == {"source": 1}


def test_a_margin_is_read_where_it_is_learned_from(tmp_path: Path) -> None:
    lines = [PAIR | {"margin": 0.5}, PAIR]
    assert read(tmp_path, *lines).ignored_keys == {"margin": 1}
    file = read(tmp_path, *lines, with_margin=True)
    assert not file.ignored_keys
    renderer = Renderer(tiny_tokenizer())
    assert [pair_example(renderer, each).columns[MARGIN].tolist() for each in file.samples] == [[0.5, 0.5], [0, 0]]
    assert reward.MARGIN == MARGIN
    for bad in ("-1", "true", '"much"', "1e999"):
        line = json.dumps(PAIR | {"margin": 0}).replace('"margin": 0', f'"margin": {bad}')
        with pytest.raises(SampleError, match=r":2: margin is .*; expected a number of at least 0"):
            read(tmp_path, PAIR, line, with_margin=True)


def test_labelled_completions_stand_beside_one_of_another_prompt(tmp_path: Path) -> None:
    lines = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n % 2 == 0} for n in range(4)]
    file = read_labelled(write_jsonl(tmp_path / "labels.jsonl", lines))
    assert [said(each.own) for each in file.samples] == [[f"p{n}", f"c{n}"] for n in range(4)]
    assert [said(each.others) for each in file.samples] == [[f"p{n}", f"c{(n + 2) % 4}"] for n in range(4)]
    both = labelled_example(Renderer(tiny_tokenizer()), file.samples[1])
    assert both.columns[DESIRABLE].tolist() == [0, 0]
    assert labelled_example(Renderer(tiny_tokenizer()), file.samples[0]).columns[DESIRABLE].tolist() == [1, 1]
    assert kto.DESIRABLE == DESIRABLE


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "p", "completion": "c"}, "label is null; expected true or false"),
        ({"prompt": "p", "completion": "c", "label": 1}, "label is number"),
        ({"prompt": "p", "label": True}, "the sample has no completion"),
        ({"completion": "c", "label": True}, "completion answers no prompt"),
    ],
)
def test_a_line_that_is_no_labelled_completion_is_refused(tmp_path: Path, line: dict[str, Any], says: str) -> None:
    with pytest.raises(SampleError) as caught:
        read_labelled(write_jsonl(tmp_path / "labels.jsonl", [line]))
    assert str(caught.value).startswith(f"{tmp_path / 'labels.jsonl'}:1: {says}")


LONG = {
    "prompt": [USER, NO, {"role": "user", "content": "Sure?"}],
    "chosen": [YES],
    "rejected": [NO, {"role": "user", "content": "No."}, YES],
}


@pytest.mark.parametrize("template", ["markers", "plain"])
def test_completions_alone_count_and_both_have_the_prompt(tmp_path: Path, template: Template) -> None:
    renderer = Renderer(tiny_tokenizer(template))
    short, long = (pair_example(renderer, pair) for pair in read(tmp_path, PAIR, LONG).samples)
    assert show(renderer.tokenizer, short) == (
        "<|begin|><|turn|>user\n2 + 2?<|end|>\n<|turn|>assistant\n⟦4<|end|>⟧\n"
        "<|begin|><|turn|>user\n2 + 2?<|end|>\n<|turn|>assistant\n⟦5!<|end|>⟧\n"
    )
    prompt = (
        "<|begin|><|turn|>user\n2 + 2?<|end|>\n<|turn|>assistant\n5!<|end|>\n<|turn|>user\nSure?<|end|>\n"
        "<|turn|>assistant\n"
    )
    assert show(renderer.tokenizer, long) == (
        f"{prompt}⟦4<|end|>⟧\n{prompt}⟦5!<|end|>⟧\n<|turn|>user\nNo.<|end|>\n<|turn|>assistant\n⟦4<|end|>⟧\n"
    )
    middle = int(long.document_starts[1])
    assert long.token_ids[middle] == long.token_ids[0]
    assert len(long.document_starts) == 2


def test_a_labelled_completion_alone_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    line = {"prompt": "p", "completion": "c", "label": True}
    with pytest.raises(DataError, match=r"labels.jsonl: one usable sample; expected two or more, .* hint: add samples"):
        read_labelled(write_jsonl(tmp_path / "labels.jsonl", [line]))
