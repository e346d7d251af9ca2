"""Completions are drawn from the model, by their own seed alone, and have the log-probabilities of training."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tolerances import LOGPROB_FP32
from training.config import LoraConfig
from training.data.batch import Microbatch
from training.models.forward import logprobs
from training.models.lora import add_adapter
from training.models.tiny import Architecture, tiny_model, tiny_tokenizer
from training.rollout.episodes import seed_of
from training.rollout.generate import Completion, Sampling, draw, generate, stop_ids

PROMPTS = [np.array(ids, dtype=np.int32) for ids in ([256, 7, 8], [256, 9, 10, 11, 12, 13], [256])]
SAMPLING = Sampling(temperature=1.0, top_p=1.0, num_tokens_max=12, stop_ids=frozenset(range(0, 260, 15)))
CPU = torch.device("cpu")


def drawn(
    model: Any, prompts: list[Any] = PROMPTS, seeds: tuple[int, ...] = (1, 2, 3), **changed: Any
) -> list[Completion]:
    sampling = Sampling(**{**vars(SAMPLING), **changed})
    return generate(model, prompts, sampling=sampling, seeds=seeds, device=CPU)


def trained_logprobs(model: Any, prompt: Any, completion: Completion) -> np.ndarray:
    """What training computes for the completion."""
    ids = torch.from_numpy(np.concatenate([prompt, completion.token_ids]).astype(np.int64))
    document = Microbatch(ids, torch.arange(len(ids)), torch.ones(len(ids)), torch.tensor([0, len(ids)]))
    model.eval()
    with torch.no_grad():
        return logprobs(model, document, torch.arange(len(prompt), len(ids))).numpy()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "granite", "qwen3_moe", "adapter"])
def test_sampled_log_probabilities_are_those_of_training(architecture: Architecture) -> None:
    """Cache, padding on the left and another attention on one side; packing on the other."""
    model: Any = add_adapter(tiny_model(), LoraConfig()) if architecture == "adapter" else tiny_model(architecture)
    found = drawn(model, temperature=0.7, top_p=0.9)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        expected = trained_logprobs(model, prompt, completion)
        assert np.abs(completion.logprobs - expected).max() <= LOGPROB_FP32
    assert model.config._attn_implementation == "documents"


@pytest.mark.parametrize(("named", "more"), [(None, set()), (7, {7}), ([7, 9], {7, 9})])
def test_a_turn_ends_where_the_model_says_or_the_tokenizer(named: int | list[int] | None, more: set[int]) -> None:
    model: Any = add_adapter(tiny_model(), LoraConfig())
    model.base_model.model.generation_config.eos_token_id = named
    assert stop_ids(model, tiny_tokenizer()) == {tiny_tokenizer().eos_token_id, *more}


def test_a_completion_depends_on_its_seed_and_not_on_the_batch() -> None:
    model = tiny_model()
    together = drawn(model)
    for number, prompt in enumerate(PROMPTS):
        (alone,) = drawn(model, [prompt], (number + 1,))
        assert np.array_equal(alone.token_ids, together[number].token_ids)
    other = drawn(model, seeds=(4, 5, 6))
    assert any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(together, other, strict=True))
    state = torch.random.get_rng_state()
    drawn(model)
    assert torch.equal(state, torch.random.get_rng_state()), "nothing else draws"


def test_a_completion_ends_with_the_first_token_that_stops_or_is_cut_off() -> None:
    found = drawn(tiny_model(), PROMPTS * 8, tuple(range(24)))
    assert {completion.is_finished for completion in found} == {True, False}
    for completion in found:
        is_stop = np.isin(completion.token_ids, sorted(SAMPLING.stop_ids))
        assert not is_stop[:-1].any()
        assert is_stop[-1] == completion.is_finished
        assert completion.is_finished or len(completion.token_ids) == 12


def test_a_batch_that_shrinks_and_a_cache_that_grows_draw_what_each_row_draws_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.rollout.generate.ROOM", 2)
    model = tiny_model()
    asked, seeds = [prompt for prompt in PROMPTS for _ in range(8)], tuple(range(24))
    together = drawn(model, asked, seeds)
    assert len({len(each.token_ids) for each in together}) > 3, "some end early"
    for prompt, seed, completion in zip(asked, seeds, together, strict=True):
        (alone,) = drawn(model, [prompt], (seed,))
        assert np.array_equal(alone.token_ids, completion.token_ids)
        assert np.allclose(alone.logprobs, completion.logprobs, atol=1e-5)
        assert alone.is_finished == completion.is_finished


def test_without_temperature_the_likeliest_token_is_taken() -> None:
    model: Any = tiny_model()
    for prompt, completion in zip(PROMPTS, drawn(model, temperature=0.0), strict=True):
        model.set_attn_implementation("sdpa")
        theirs = model.generate(
            input_ids=torch.from_numpy(prompt.astype(np.int64))[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=len(completion.token_ids),
            do_sample=False,
            eos_token_id=None,
        )
        model.set_attn_implementation("documents")
        assert theirs[0, len(prompt) :].tolist() == completion.token_ids.tolist()


def test_draws_by_hand() -> None:
    """Probabilities 0.5, 0, 0.3 and 0.2; the nucleus of 0.6 is the first and the third, 5 to 3."""
    row = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    uniforms = torch.tensor([0.0, 0.499, 0.501, 0.79, 0.81, 0.999], dtype=torch.float64)
    rows = row.expand(len(uniforms), 4)
    plain = Sampling(temperature=1.0, top_p=1.0, num_tokens_max=1, stop_ids=frozenset())
    assert draw(rows, uniforms, plain).tolist() == [0, 0, 2, 2, 3, 3]
    nucleus = Sampling(temperature=1.0, top_p=0.6, num_tokens_max=1, stop_ids=frozenset())
    assert draw(rows, uniforms, nucleus).tolist() == [0, 0, 0, 2, 2, 2]
    # At temperature 0.5 the odds are squared: 25, 9 and 4.
    cold = Sampling(temperature=0.5, top_p=1.0, num_tokens_max=1, stop_ids=frozenset())
    assert draw(rows, torch.tensor([0.65, 0.66, 0.89, 0.9] + [0.0] * 2).double(), cold).tolist()[:4] == [0, 2, 2, 3]


def test_ranks_that_are_done_go_on_until_all_are() -> None:
    asked: list[bool] = []

    def all_done(done: bool) -> bool:
        asked.append(done)
        return len(asked) == 9

    sampling = Sampling(temperature=1.0, top_p=1.0, num_tokens_max=12, stop_ids=frozenset(range(260)))
    found = generate(tiny_model(), PROMPTS, sampling=sampling, seeds=(1, 2, 3), device=CPU, all_done=all_done)
    assert asked == [True] * 9
    assert [len(each.token_ids) for each in found] == [1, 1, 1]


def test_no_two_draws_have_a_seed_in_common() -> None:
    some = range(3)
    every = itertools.product(some, some, some, some)
    seeds = [seed_of(0, rollout, number, attempt=attempt, turn=turn) for rollout, number, attempt, turn in every]
    assert len(set(seeds)) == len(seeds) == 3**4
