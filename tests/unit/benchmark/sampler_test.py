"""Answers by the batch are those by hand, one token at a time, without a cache."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.benchmark.sampler import Completion, Messages, completions, prompt_ids
from training.models.tiny import tiny_model, tiny_tokenizer

PROMPTS: list[Messages] = [
    [{"role": "user", "content": text}] for text in ("Hello?", "1+1", "What is a rather long one?", "x")
]
LIMIT = 12


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = tiny_model(seed=1)
    model.set_attn_implementation("sdpa")
    return model.eval()


def by_hand(model: Any, tokenizer: Any, prompt: Messages) -> list[int]:
    """The likeliest next token, again and again, each from a forward pass over everything before it."""
    ids = prompt_ids(tokenizer, prompt)
    begin = len(ids)
    while len(ids) < begin + LIMIT and ids[-1] != tokenizer.eos_token_id:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[begin:]


def test_greedy_answers_of_a_padded_batch_are_those_of_each_prompt_alone(model: Any, tokenizer: Any) -> None:
    batched = completions(model, tokenizer, PROMPTS, num_new_tokens_max=LIMIT)
    for prompt, (answer,) in zip(PROMPTS, batched, strict=True):
        ids = by_hand(model, tokenizer, prompt)
        finished = ids[-1] == tokenizer.eos_token_id
        assert answer == Completion(tokenizer.decode(ids[: len(ids) - finished], skip_special_tokens=True), finished)


def test_the_end_of_a_turn_ends_the_answer_and_is_no_part_of_it(tokenizer: Any) -> None:
    # A model whose head knows one token: after whatever it reads it says that the turn ends.
    model = tiny_model(seed=1)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight[tokenizer.eos_token_id].fill_(1.0)
    model.eval()
    assert completions(model, tokenizer, PROMPTS, num_new_tokens_max=LIMIT) == [[Completion("", True)]] * len(PROMPTS)


def test_the_same_seed_draws_the_same_and_another_one_other_answers(model: Any, tokenizer: Any) -> None:
    def drawn(seed: int) -> list[list[Completion]]:
        return completions(
            model, tokenizer, PROMPTS, num_new_tokens_max=LIMIT, temperature=1.0, num_samples=3, seed=seed
        )

    generator = torch.get_rng_state()
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert torch.equal(torch.get_rng_state(), generator), "the global generator is left alone"
    assert [len(answers) for answers in drawn(0)] == [3] * len(PROMPTS)
    assert len(set(drawn(0)[0])) == 3, "the draws for one prompt differ"


def test_draws_follow_the_models_probabilities(model: Any, tokenizer: Any) -> None:
    prompt = PROMPTS[1]
    num_samples = 4000
    (answers,) = completions(
        model,
        tokenizer,
        [prompt],
        num_new_tokens_max=1,
        temperature=1.0,
        num_samples=num_samples,
        sequences_per_batch=num_samples,
    )
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids(tokenizer, prompt)])).logits[0, -1]
    probability, token = torch.softmax(logits, dim=-1).max(dim=-1)
    assert token not in tokenizer.all_special_ids
    said = sum(answer.text == tokenizer.decode([int(token)]) for answer in answers) / num_samples
    assert said == pytest.approx(float(probability), abs=4 * (float(probability) / num_samples) ** 0.5)
