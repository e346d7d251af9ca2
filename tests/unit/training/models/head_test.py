"""A head run in chunks gives the loss and the gradients of one that is not, and never holds all scores."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.examples import random_examples
from tests.support.tolerances import GRADIENT_FP32, LOSS_SUM_FP32_RELATIVE
from training.algorithms.sft import Sft
from training.config import LoraConfig
from training.data.batch import microbatch
from training.errors import ModelError
from training.models.attention import DocumentStarts
from training.models.forward import logits, logprobs
from training.models.head import ChunkedHead, chunked_head
from training.models.lora import add_adapter
from training.models.tiny import Architecture, tiny_model

PACK = microbatch(random_examples([40, 61, 29]))
BF16_RELATIVE = 2e-2
"""Gradients that pass through bfloat16, whose relative precision is 2⁻⁸, in sums of other parts."""


class HeadOnly(nn.Module):
    """Hidden states of our own and a head: what is left of a model once all else is known to be right."""

    def __init__(self, *, num_tokens: int = 23, hidden_size: int = 8, vocabulary: int = 50, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(num_tokens)
        self.hidden = nn.Parameter(torch.randn(num_tokens, hidden_size, generator=generator))
        self.head = nn.Linear(hidden_size, vocabulary, bias=False)
        self.head.weight.data = torch.randn(vocabulary, hidden_size, generator=generator)
        self.scale = scale
        self.targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
        self.weights = torch.rand(num_tokens, generator=generator) + 0.1

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, **inputs: Any) -> Tensor:
        result: Tensor = self.head(self.hidden[None]) * self.scale
        return result


def chunked(model: HeadOnly, chunk_tokens: int, weights: Tensor | None) -> Tensor:
    how = ChunkedHead(chunk_tokens, model.scale)
    with how.in_place_of_logits(model, model.targets, weights):
        result: Tensor = model()[0]
    return result


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return {name: None if each.grad is None else each.grad.clone() for name, each in model.named_parameters()}


def assert_same(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], bound: float = GRADIENT_FP32) -> None:
    assert ours.keys() == theirs.keys()
    for name, other in theirs.items():
        mine = ours[name]
        assert (mine is None) == (other is None), name
        if mine is not None and other is not None:
            assert mine.dtype == other.dtype
            assert (mine - other).abs().max() <= bound * other.abs().max(), name


@pytest.mark.parametrize("scale", [1.0, 0.125, 3.0])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 23, 512])
@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("says_weights", [True, False])
def test_equals_cross_entropy_and_its_gradients(
    scale: float, chunk_tokens: int, is_trained: bool, says_weights: bool
) -> None:
    model = HeadOnly(scale=scale)
    model.head.weight.requires_grad_(is_trained)
    plain = nn.functional.cross_entropy(model()[0], model.targets, reduction="none") @ model.weights / 7
    expected = gradients(model, plain)
    got = -(chunked(model, chunk_tokens, model.weights if says_weights else None) @ model.weights) / 7
    torch.testing.assert_close(got, plain, rtol=LOSS_SUM_FP32_RELATIVE, atol=0.0)
    assert_same(gradients(model, got), expected)


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_loss_that_is_no_weighted_sum_has_the_right_gradients_too(is_trained: bool) -> None:
    """As preference losses are: the sigmoid of a difference of sums, whose factors nobody knows beforehand."""

    def loss(logprobs_K: Tensor) -> Tensor:
        return -nn.functional.logsigmoid(0.1 * (logprobs_K[:9].sum() - logprobs_K[9:].sum())) + logprobs_K.exp().sum()

    model = HeadOnly()
    model.head.weight.requires_grad_(is_trained)
    rows = torch.arange(len(model.targets))
    expected = gradients(model, loss(model()[0].log_softmax(-1)[rows, model.targets]))
    assert_same(gradients(model, loss(chunked(model, 5, None))), expected)


def test_weights_that_were_announced_and_not_used_are_a_mistake_of_ours() -> None:
    model = HeadOnly()
    with pytest.raises(AssertionError, match="logprobs got other gradients than weights"):
        gradients(model, chunked(model, 5, model.weights).sum())


def test_no_position_is_no_loss_and_zero_gradients() -> None:
    model = HeadOnly(num_tokens=0)
    total = chunked(model, 5, model.weights) @ model.weights
    assert total.item() == 0.0
    total.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    assert model.head.weight.grad is not None
    assert not model.head.weight.grad.any()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny_model("llama"),
    "tied head": lambda: tiny_model("qwen2"),
    "scaled logits": lambda: tiny_model("granite", logits_scaling=3.0),
    "lora": lambda: add_adapter(tiny_model(), LoraConfig(rank=4, dropout=0.0)),
}


@pytest.mark.parametrize("is_half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_the_same_with_chunks_and_without(name: str, is_half: bool) -> None:
    model = MODELS[name]()
    how = chunked_head(model, 16, name)
    assert how.logit_scale == pytest.approx(1 / 3 if name == "scaled logits" else 1.0)
    results = []
    for head in (None, how):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss, _ = Sft().loss_sum(partial(logprobs, model, head=head), PACK)
        assert loss.dtype == torch.float32
        results.append((loss, gradients(model, loss)))
    (plain, expected), (got, ours) = results
    assert got.item() == pytest.approx(plain.item(), rel=1e-4 if is_half else LOSS_SUM_FP32_RELATIVE)
    assert_same(ours, expected, BF16_RELATIVE if is_half else GRADIENT_FP32)
    assert vars(model.get_output_embeddings()).get("forward") is None, "the head is left as it was"


def test_without_gradients_none_is_formed() -> None:
    model = HeadOnly()
    with torch.no_grad():
        got = chunked(model, 4, model.weights)
    assert not got.requires_grad
    expected = model()[0].log_softmax(-1).gather(1, model.targets[:, None])[:, 0]
    torch.testing.assert_close(got, expected.detach(), rtol=1e-6, atol=1e-6)


class Widest(TorchDispatchMode):
    """Notes the largest tensor over the vocabulary that any operation gives, except gradients of the head."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        for each in answer if isinstance(answer, (tuple, list)) else (answer,):
            if isinstance(each, Tensor) and each.ndim and each.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, each.numel() // self.vocabulary)
        return answer


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights_are_known", [True, False])
def test_scores_of_more_than_a_chunk_never_exist(name: str, weights_are_known: bool) -> None:
    model = MODELS[name]()
    next_K = torch.arange(1, PACK.num_tokens)
    weights = torch.ones(len(next_K)) if weights_are_known else None
    with Widest(model.config.vocab_size) as plain:
        logprobs(model, PACK, next_K, weights).sum().backward()
    how = chunked_head(model, 16, name)
    with Widest(model.config.vocab_size) as in_chunks:
        logprobs(model, PACK, next_K, weights, head=how).sum().backward()
    assert plain.rows == len(next_K)
    # The head's own weight, transposed by a product, has as many rows of this width as the model has dimensions.
    assert in_chunks.rows in (16, model.config.hidden_size)


def refused(model: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        chunked_head(model, 16, "tiny")
    assert caught.value.where == "tiny"
    assert caught.value.hint.startswith("leave --model.loss_chunk_tokens out")
    return caught.value


def test_what_would_be_another_loss_is_refused() -> None:
    capped: Any = tiny_model("gemma2", head_dim=8, final_logit_softcapping=30.0)  # type: ignore[arg-type]  # any model type works
    capped.set_attn_implementation("eager")
    assert refused(capped).got.startswith("a model that bends its logits (by factors of 0.4")
    adapted = add_adapter(tiny_model(), LoraConfig(rank=2, target_modules=("lm_head", "q_proj")))
    assert "lora" in refused(adapted).got
    biased: Any = tiny_model("phi")  # type: ignore[arg-type]  # any model type works
    assert refused(biased).got.endswith("bias=True)")


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_an_error_on_the_way_leaves_the_head_as_it_was(architecture: Architecture) -> None:
    model: Any = tiny_model(architecture)
    before = logits(model, PACK)
    how = chunked_head(model, 16, architecture)
    with pytest.raises(IndexError), how.in_place_of_logits(model, PACK.token_ids_T, None):
        model(input_ids=torch.tensor([[10**6]]), document_starts=DocumentStarts([0, 1]))
    assert torch.equal(logits(model, PACK), before)
