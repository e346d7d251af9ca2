"""The benchmark's likelihoods, computed without `training`, are those that training minimises."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmark.likelihood import answer_places, predictions
from tests.support.chats import TWO_TURNS, chat, write_jsonl
from tests.support.tolerances import LOGPROB_FP32
from training.algorithms.sft import Sft
from training.data.batch import microbatch
from training.data.render import Renderer
from training.data.samples import read_samples
from training.models.forward import logprobs
from training.models.tiny import tiny_model, tiny_tokenizer

CHATS = [TWO_TURNS, chat("2+2?", "4")]


@pytest.mark.parametrize("sample", CHATS, ids=["two turns", "one turn"])
def test_answer_tokens_are_those_that_training_weighs(sample: dict[str, Any], tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer()
    (read,) = read_samples(str(write_jsonl(tmp_path / "chat.jsonl", [sample]))).samples
    example = Renderer(tokenizer).example(read)
    ids, places = answer_places(tokenizer, sample["messages"])
    assert ids == example.token_ids.tolist()
    assert places == np.flatnonzero(example.weights).tolist()


def test_the_sum_of_surprises_is_the_loss_sum_of_training(tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer()
    samples = read_samples(str(write_jsonl(tmp_path / "chat.jsonl", CHATS))).samples
    packed = microbatch([Renderer(tokenizer).example(each) for each in samples])
    model = tiny_model(seed=2).eval()
    with torch.no_grad():
        loss_sum, _ = Sft().loss_sum(partial(logprobs, model), packed)
    model.set_attn_implementation("sdpa")
    found = [each for sample in CHATS for each in predictions(model, tokenizer, sample["messages"])]
    assert len(found) == int(packed.weights_T.sum())
    assert sum(each.surprise for each in found) == pytest.approx(float(loss_sum), abs=LOGPROB_FP32 * len(found))


def test_confidence_is_the_likeliest_tokens_and_right_says_whether_it_came() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(seed=2).eval()
    model.set_attn_implementation("sdpa")
    messages = chat("2+2?", "4")["messages"]
    ids, places = answer_places(tokenizer, messages)
    for at, found in zip(places, predictions(model, tokenizer, messages), strict=True):
        with torch.no_grad():
            probabilities = torch.softmax(model(input_ids=torch.tensor([ids[:at]])).logits[0, -1], dim=-1)
        assert found.confidence == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert found.surprise == pytest.approx(-float(probabilities[ids[at]].log()), abs=1e-4)
        assert found.is_right == (int(probabilities.argmax()) == ids[at])
