"""The loss equals its definition, transformers' own loss, and itself however a batch is packed, padded or split."""

import math
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.examples import example, random_examples
from tests.support.tolerances import GRADIENT_FP32, LOSS_SUM_FP32_RELATIVE
from training.algorithms.algorithm import Algorithm
from training.algorithms.sft import Sft
from training.data.batch import Batch, Microbatch, microbatch
from training.data.example import Example
from training.data.loader import Loader
from training.data.pack import pack
from training.models.forward import logits, logprobs
from training.models.tiny import Architecture, tiny_model

SFT: Algorithm[Batch, Microbatch] = Sft()


class Table(nn.Module):
    """A model that gives the same scores whatever it reads."""

    def __init__(self, logits_TV: Tensor) -> None:
        super().__init__()
        self.logits_TV = logits_TV

    def forward(self, *, logits_to_keep: Tensor, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits_TV[None, logits_to_keep])


def loss_sum(logits_TV: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The loss of one document whose tokens and scores are given."""
    num_tokens = len(ids)
    document = Microbatch(ids, torch.arange(num_tokens), weights, torch.tensor([0, num_tokens]))
    return SFT.loss_sum(partial(logprobs, Table(logits_TV)), document)[0]


def test_three_tokens_by_hand() -> None:
    """Row 0 gives token 1 odds 3 to 1, row 1 gives token 0 odds 4 to 1; the second prediction counts twice."""
    logits_TV = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0], [9.0, -9.0]])
    loss = loss_sum(logits_TV, torch.tensor([1, 1, 0]), torch.tensor([0.0, 1.0, 2.0]))
    assert loss.item() == pytest.approx(-math.log(3 / 4) - 2 * math.log(4 / 5), rel=1e-6)


def test_weights_belong_to_the_token_that_is_predicted_not_to_the_one_that_predicts() -> None:
    """The planted bug is a shift by one: it would count the certain prediction here."""
    certain, uniform = [50.0, 0.0], [0.0, 0.0]
    loss = loss_sum(torch.tensor([certain, uniform, certain]), torch.tensor([0, 0, 1]), torch.tensor([0.0, 0.0, 1.0]))
    assert loss.item() == pytest.approx(math.log(2))


def test_the_first_tokens_weight_never_counts() -> None:
    logits_TV, ids = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    weights = torch.tensor([0.0, 1.0, 1.0, 1.0])
    expected = loss_sum(logits_TV, ids, weights)
    assert torch.equal(loss_sum(logits_TV, ids, weights.index_fill(0, torch.tensor([0]), 7.0)), expected)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits_TV, ids = torch.randn(300, 7, dtype=torch.bfloat16), torch.randint(0, 7, (300,))
    loss = loss_sum(logits_TV, ids, torch.ones(300))
    assert loss.dtype == torch.float32
    expected = -logits_TV.double().log_softmax(-1)[range(299), ids[1:]].sum()
    assert loss.item() == pytest.approx(expected.item(), rel=LOSS_SUM_FP32_RELATIVE)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_equals_the_loss_that_transformers_computes(architecture: Architecture) -> None:
    """Their loss is a mean over the labels that are not -100; ours is the sum, so the oracle is mean times count."""
    model = tiny_model(architecture)
    one = random_examples([40], seed=3)[0]
    pack_ = microbatch([Example(one.token_ids, (one.weights > 0).astype("float32"), one.where)])
    ids = pack_.token_ids_T
    labels = torch.where(pack_.weights_T > 0, ids, -100)
    got, metrics = SFT.loss_sum(partial(logprobs, model), pack_)
    model.set_attn_implementation("sdpa")
    theirs = model(input_ids=ids[None], labels=labels[None], use_cache=False).loss
    count = int((labels != -100).sum())
    assert got.item() == pytest.approx(theirs.item() * count, rel=LOSS_SUM_FP32_RELATIVE)
    assert metrics == {}


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_packed_batch_has_the_loss_and_gradients_that_transformers_has_for_its_samples(
    architecture: Architecture,
) -> None:
    """Theirs: one sample at a time, by their own attention, as its trainer would (`num_items_in_batch`)."""
    examples = [
        Example(each.token_ids, (each.weights > 0).astype("float32"), each.where)
        for each in random_examples([12, 31, 7, 20], seed=4)
    ]
    divisor = sum(each.weight_sum for each in examples)
    ours, theirs = tiny_model(architecture), tiny_model(architecture)
    loss = SFT.loss_sum(partial(logprobs, ours), microbatch(examples))[0] / divisor
    loss.backward()
    theirs.set_attn_implementation("sdpa")
    total = 0.0
    for each in examples:
        ids = torch.from_numpy(each.token_ids.astype("int64"))[None]
        labels = torch.where(torch.from_numpy(each.weights)[None] > 0, ids, -100)
        part = theirs(input_ids=ids, labels=labels, use_cache=False, num_items_in_batch=torch.tensor(divisor)).loss
        part.backward()
        total += part.item()
    assert loss.item() == pytest.approx(total, rel=LOSS_SUM_FP32_RELATIVE)
    expected = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
    assert_same({name: each.grad for name, each in ours.named_parameters() if each.grad is not None}, expected)


def test_asking_for_fewer_logits_gives_the_same_sum_as_asking_for_all() -> None:
    model, pack_ = tiny_model(), microbatch(random_examples([11, 30, 5]))
    got, _ = SFT.loss_sum(partial(logprobs, model), pack_)
    logprobs_TV = logits(model, pack_).log_softmax(-1)
    next_T = torch.arange(1, pack_.num_tokens)
    whole = -pack_.weights_T[1:] @ logprobs_TV[next_T - 1, pack_.token_ids_T[next_T]]
    assert got.item() == pytest.approx(whole.item(), rel=LOSS_SUM_FP32_RELATIVE)


def total(model: nn.Module, microbatches: Sequence[Microbatch]) -> Tensor:
    return torch.stack([SFT.loss_sum(partial(logprobs, model), each)[0] for each in microbatches]).sum()


MODEL = tiny_model(num_hidden_layers=1)


@given(st.lists(st.integers(2, 24), min_size=1, max_size=7), st.integers(0, 99), st.integers(24, 80))
@settings(max_examples=25, deadline=None)
def test_the_sum_does_not_depend_on_packing_or_split(lengths: list[int], seed: int, capacity: int) -> None:
    examples = random_examples(lengths, seed=seed)
    alone = total(MODEL, [microbatch([each]) for each in examples])
    packed = total(MODEL, [microbatch([examples[i] for i in members]) for members in pack(lengths, capacity)])
    assert packed.item() == pytest.approx(alone.item(), rel=LOSS_SUM_FP32_RELATIVE)


@given(st.integers(2, 20), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_padding_never_reaches_the_loss(length: int, num_padding: int, seed: int) -> None:
    plain = random_examples([length], seed=seed)[0]
    padded = example([*plain.token_ids.tolist(), *[259] * num_padding], [*plain.weights.tolist(), *[0.0] * num_padding])
    got, expected = (total(MODEL, [microbatch([each])]).item() for each in (padded, plain))
    assert got == pytest.approx(expected, rel=LOSS_SUM_FP32_RELATIVE)


def gradients(microbatches: Sequence[Microbatch], divisor: float, seed: int = 0) -> dict[str, Tensor]:
    model = tiny_model(seed=seed)
    for each in microbatches:
        (SFT.loss_sum(partial(logprobs, model), each)[0] / divisor).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (got[name] - gradient).abs().max() <= GRADIENT_FP32 * gradient.abs().max(), name


def test_gradients_do_not_depend_on_the_token_budget_or_the_number_of_ranks() -> None:
    """One batch of ragged documents: one microbatch, one each, several, and shared by three ranks with a filler."""
    examples = random_examples([3, 17, 9, 30, 5, 22], seed=8)

    def batches(tokens_per_rank_max: int, num_ranks: int) -> list[Batch]:
        return [
            Loader(
                examples,
                samples_per_step=6,
                tokens_per_rank_max=tokens_per_rank_max,
                seed=0,
                rank=rank,
                num_ranks=num_ranks,
            ).batch(0)
            for rank in range(num_ranks)
        ]

    def gradient_of(given: list[Batch]) -> dict[str, Tensor]:
        divisors = {SFT.divisor(batch) for batch in given}
        assert len(divisors) == 1
        return gradients([each for batch in given for each in batch.microbatches], divisors.pop())

    expected = gradient_of(batches(100, 1))
    alone = [microbatch([each]) for each in examples]
    assert_same(gradients(alone, sum(each.weight_sum for each in examples)), expected)
    for tokens_per_rank_max, num_ranks in [(30, 1), (50, 1), (40, 2), (30, 3), (100, 8)]:
        assert_same(gradient_of(batches(tokens_per_rank_max, num_ranks)), expected)


def test_a_mean_of_microbatch_means_would_be_another_gradient() -> None:
    """The planted bug: each microbatch divided by its own weights. The invariance above must be able to fail."""
    examples = random_examples([4, 40], seed=2)
    alone = [microbatch([each]) for each in examples]
    right = gradients(alone, sum(each.weight_sum for each in examples))
    wrong = {name: torch.zeros_like(gradient) for name, gradient in right.items()}
    for each, source in zip(alone, examples, strict=True):
        for name, gradient in gradients([each], source.weight_sum * len(alone)).items():
            wrong[name] += gradient
    with pytest.raises(AssertionError):
        assert_same(wrong, right)


def test_a_filler_adds_no_loss_and_zero_gradients_for_every_weight() -> None:
    """Zero, not absent: a rank that lacks a gradient leaves the others waiting in the reduction."""
    model, filler = tiny_model(), microbatch(random_examples([9]), weighted=False)
    loss, _ = SFT.loss_sum(partial(logprobs, model), filler)
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_divisor_is_the_weight_of_the_global_batch() -> None:
    batch = Loader(random_examples([5, 6, 7]), samples_per_step=3, tokens_per_rank_max=9, seed=0).batch(0)
    assert SFT.divisor(batch) == batch.weight_sum
    assert batch.weight_sum == pytest.approx(sum(float(each.weights_T.sum()) for each in batch.microbatches))


def test_a_uniform_model_is_surprised_by_the_logarithm_of_the_vocabulary() -> None:
    model, examples = tiny_model(), random_examples([20, 30])
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    loss = total(model, [microbatch(examples)])
    assert loss.item() == pytest.approx(sum(e.weight_sum for e in examples) * math.log(260), rel=1e-5)
