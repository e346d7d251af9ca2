"""Packed documents get the log-probabilities they would get alone; the obvious ways to run a pack do not do that."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from tests.support.examples import answered, random_examples
from tests.support.tolerances import GRADIENT_FP32, LEAK, LOGPROB_FP32
from training.data.batch import microbatch, unpacked
from training.data.example import Example
from training.models import forward
from training.models.forward import logits, value_head, values
from training.models.head import chunked_head
from training.models.load import Attention
from training.models.tiny import Architecture, tiny_model

EXAMPLES = random_examples([7, 12, 3, 20])
ATTENTIONS: list[Attention] = ["documents", "sdpa", "eager"]


def logprobs(logits_TV: Tensor) -> Tensor:
    return logits_TV.log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_packed_logprobs_equal_unpacked_ones(architecture: Architecture, attention: Attention) -> None:
    model = tiny_model(architecture)
    model.set_attn_implementation(attention)
    packed = logprobs(logits(model, microbatch(EXAMPLES)))
    alone = torch.cat([logprobs(logits(model, microbatch([example]))) for example in EXAMPLES])
    torch.testing.assert_close(packed, alone, atol=LOGPROB_FP32, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_packed_gradients_equal_unpacked_ones(architecture: Architecture, attention: Attention) -> None:
    """Of a sum in which each token of the vocabulary has a weight of its own at each position."""

    def gradients(*packs: list[Example]) -> dict[str, Tensor]:
        model = tiny_model(architecture)
        model.set_attn_implementation(attention)
        position = 0
        for pack in packs:
            scores = logprobs(logits(model, microbatch(pack)))
            at = torch.arange(position, position + scores.numel()).view_as(scores)
            (scores * (at * 0.37).sin()).sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            position += scores.numel()
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    packed, alone = gradients(EXAMPLES), gradients(*([each] for each in EXAMPLES))
    assert packed.keys() == alone.keys()
    for name, gradient in alone.items():
        assert (packed[name] - gradient).abs().max() <= GRADIENT_FP32 * gradient.abs().max(), name


@torch.no_grad()
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_document_alone_gets_what_transformers_gives_it(architecture: Architecture) -> None:
    model = tiny_model(architecture)
    pack = microbatch([EXAMPLES[1]])
    got = logits(model, pack)
    model.set_attn_implementation("eager")
    plain = model(input_ids=pack.token_ids_T[None]).logits[0]
    torch.testing.assert_close(got, plain, atol=LOGPROB_FP32, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_the_naive_ways_to_run_a_pack_mix_documents(architecture: Architecture) -> None:
    """Each of these looks right and is wrong; if one stops mixing, `forward` may become simpler."""
    model = tiny_model(architecture)
    pack = microbatch(EXAMPLES)
    right = logits(model, pack)
    ids, positions = pack.token_ids_T[None], pack.positions_T[None]
    model.set_attn_implementation("sdpa")
    naive = {
        "all-ones mask": model(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False),
        "with a cache": model(ids, position_ids=positions, use_cache=True),
        "without positions": model(ids, use_cache=False),
    }
    for name, outputs in naive.items():
        first = len(EXAMPLES[0])
        change = (outputs.logits[0] - right).abs().max(-1).values
        assert change[:first].max() < LOGPROB_FP32, f"{name}: the first document has nothing before it"
        assert change[first:].max() > LEAK, name


@torch.no_grad()
def test_asked_positions_are_rows_of_the_whole() -> None:
    model, pack = tiny_model(), microbatch(EXAMPLES)
    at = torch.tensor([0, 6, 7, 40])
    torch.testing.assert_close(logits(model, pack, at), logits(model, pack)[at], atol=LOGPROB_FP32, rtol=0)
    assert logits(model, pack, at[:0]).shape == (0, model.config.vocab_size)


def test_the_models_config_keeps_its_cache() -> None:
    """An export carries the config on, and a model exported without cache generates slowly for ever."""
    model = tiny_model()
    logits(model, microbatch(EXAMPLES))
    assert model.config.use_cache is True


def test_checkpointed_activations_and_autocast_give_the_same_gradients() -> None:
    model, pack = tiny_model(), microbatch(EXAMPLES)

    def gradient() -> Tensor:
        model.zero_grad()
        logits(model, pack).logsumexp(-1).sum().backward()
        assert model.model.embed_tokens.weight.grad is not None
        return model.model.embed_tokens.weight.grad.clone()

    plain = gradient()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.equal(gradient(), plain)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradient()
    assert (rounded - plain).norm() / plain.norm() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_values_are_what_a_sequence_classifier_says_of_each_document_alone(architecture: Architecture) -> None:
    config = tiny_model(architecture, num_labels=1).config
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="documents").eval()
    assert value_head(model) is model.score
    assert value_head(tiny_model(architecture)) is None
    pack = microbatch(EXAMPLES)
    got = values(model, pack, pack.document_starts_D1[1:] - 1)
    everywhere = values(model, pack, torch.arange(len(pack.token_ids_T)))
    model.set_attn_implementation("eager")
    alone = torch.cat([model(input_ids=microbatch([each]).token_ids_T[None]).logits[0] for each in EXAMPLES])
    assert got.std() > 100 * LOGPROB_FP32
    torch.testing.assert_close(got, alone, atol=LOGPROB_FP32, rtol=0)
    torch.testing.assert_close(everywhere[pack.document_starts_D1[1:] - 1], alone, atol=LOGPROB_FP32, rtol=0)


@pytest.mark.parametrize("chunk_tokens", [None, 4])
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_prompt_that_is_computed_once_changes_neither_log_probabilities_nor_gradients(
    architecture: Architecture, chunk_tokens: int | None
) -> None:
    """Two groups whose prompts begin alike, one between the other's completions, and a document with neither."""
    first, second = answered([1, 2, 3, 4, 5], [[6, 7], [8], [6, 9, 10]]), answered([1, 2, 3, 11], [[6], [7, 8]])
    examples = [first[0], second[0], EXAMPLES[0], first[1], second[1], first[2]]

    def said(share_prompts: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        model = tiny_model(architecture)
        pack = microbatch(examples, share_prompts=share_prompts)
        assert pack.num_tokens == sum(map(len, examples)) - (2 * 5 + 4 if share_prompts else 0)
        next_K = pack.weights_T[1:].nonzero().squeeze(1) + 1
        head = chunked_head(model, chunk_tokens, "tiny") if chunk_tokens else None
        logprobs_K = forward.logprobs(model, pack, next_K, pack.weights_T[next_K], head=head)
        (logprobs_K @ pack.weights_T[next_K]).backward()
        logprobs_T1 = torch.zeros(pack.num_tokens, 1).index_copy(0, next_K, logprobs_K.detach()[:, None])
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        return unpacked(pack, logprobs_T1, examples), gradients

    (alone, gradients), (shared, gradients_shared) = said(share_prompts=False), said(share_prompts=True)
    for one, other, each in zip(alone, shared, examples, strict=True):
        assert one.shape == other.shape == (len(each), 1)
        torch.testing.assert_close(other, one, atol=LOGPROB_FP32, rtol=0)
    assert gradients_shared.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (gradients_shared[name] - gradient).abs().max() <= GRADIENT_FP32 * gradient.abs().max(), name
