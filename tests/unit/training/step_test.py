"""A step equals a plain PyTorch loop over unpacked samples, and refuses what is not a number."""

import copy
import itertools
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from tests.support.examples import random_examples
from training.algorithms.algorithm import Logprobs
from training.algorithms.sft import Sft
from training.data.batch import Batch, Microbatch
from training.data.example import Example
from training.data.loader import Loader
from training.errors import NonFiniteError
from training.models.tiny import Architecture, tiny_model
from training.optimizer import adamw
from training.parallel.single import Single
from training.step import train_step, validate

EXAMPLES = random_examples([5, 19, 11, 3, 8, 24, 7, 13, 2, 16, 9, 4], seed=3)
RATE, BETAS, EPSILON, DECAY, NORM_MAX = 1e-3, (0.9, 0.95), 1e-4, 0.1, 0.5

LOSS = 2e-6
"""Relative difference of a float32 loss or norm whose terms are summed in another order. Seen: under 3e-7."""

WEIGHT = 2e-6
"""Difference of a weight after three updates of 1e-3 each, with epsilon 1e-4 so that no update is a sign of rounding.
Seen: under 3e-7."""


def loader(tokens_per_rank_max: int = 40, samples_per_step: int = 4, *, packing: bool = True) -> Loader:
    return Loader(
        EXAMPLES, samples_per_step=samples_per_step, tokens_per_rank_max=tokens_per_rank_max, seed=1, packing=packing
    )


def optimizer_of(model: nn.Module, *, fused: bool = False) -> torch.optim.AdamW:
    return adamw(model, weight_decay=DECAY, betas=BETAS, epsilon=EPSILON, fused=fused)


def step(batch: Batch, model: nn.Module, optimizer: torch.optim.Optimizer, **changed: Any) -> Any:
    settings: dict[str, Any] = {
        "algorithm": Sft(),
        "backend": Single("cpu", "fp32"),
        "learning_rate": RATE,
        "gradient_norm_max": NORM_MAX,
    }
    return train_step(batch, model=model, optimizer=optimizer, **settings | changed)


def samples_of(batches: Loader, number: int) -> list[Example]:
    """The samples of a batch, found by their token ids, so that the oracle does not ask the loader how it packed."""
    found = []
    for microbatch in batches.batch(number).microbatches:
        starts = microbatch.document_starts_D1.tolist()
        for begin, end in itertools.pairwise(starts):
            ids = microbatch.token_ids_T[begin:end].tolist()
            found += [each for each in EXAMPLES if each.token_ids.tolist() == ids]
    return found


def plain_loss(model: nn.Module, samples: list[Example]) -> Tensor:
    """Σ w · −log p / Σ w, a document at a time through the model's own call, from the definition."""
    total, divisor = torch.zeros(()), 0.0
    for sample in samples:
        ids = torch.from_numpy(sample.token_ids).long()[None]
        logits = model(input_ids=ids, use_cache=False).logits[0]
        for position in range(1, len(sample)):
            surprise = torch.logsumexp(logits[position - 1], 0) - logits[position - 1, ids[0, position]]
            total = total + float(sample.weights[position]) * surprise
        divisor += float(sample.weights.sum())
    return total / divisor


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_three_steps_equal_a_plain_loop(architecture: Architecture) -> None:
    batches = loader()
    assert any(len(batches.batch(number).microbatches) > 1 for number in range(3)), "accumulation must happen"
    ours = tiny_model(architecture, seed=2)
    plain = copy.deepcopy(ours)
    plain.set_attn_implementation("sdpa")
    decayed = [each for each in plain.parameters() if each.ndim > 1]
    others = [each for each in plain.parameters() if each.ndim <= 1]
    theirs = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE,
        betas=BETAS,
        eps=EPSILON,
        foreach=False,
    )
    mine = optimizer_of(ours)
    for number in range(3):
        theirs.zero_grad()
        loss = plain_loss(plain, samples_of(batches, number))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), NORM_MAX)
        assert norm > NORM_MAX, "clipping must happen"
        record = step(batches.batch(number), ours, mine)
        assert record.loss == pytest.approx(loss.item(), rel=LOSS)
        assert record.gradient_norm == pytest.approx(norm.item(), rel=LOSS)
        for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=WEIGHT, msg=name)
        theirs.step()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=WEIGHT, msg=name)


def test_how_a_batch_is_packed_changes_nothing() -> None:
    results = []
    for tokens, packing in ((24, True), (40, True), (200, True), (40, False)):
        model = tiny_model(seed=2)
        batch = loader(tokens, samples_per_step=8, packing=packing).batch(0)
        record = step(batch, model, optimizer_of(model), learning_rate=0.0, gradient_norm_max=None)
        results.append((record, {name: each.grad for name, each in model.named_parameters()}))
    assert [each.num_microbatches for each, _ in results[2:]] == [1, 8]
    assert len({each.num_microbatches for each, _ in results}) == 4, "four ways to cut a batch"
    (first, gradients), *rest = results
    for record, others in rest:
        assert record.loss == pytest.approx(first.loss, rel=LOSS)
        assert record.gradient_norm == pytest.approx(first.gradient_norm, rel=LOSS)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=WEIGHT, msg=name)


def test_record_says_what_was_done() -> None:
    model = tiny_model()
    batch = loader().batch(4)
    record = step(batch, model, optimizer_of(model))
    assert (record.step, record.epoch) == (5, 1)
    assert record.num_samples == 4
    assert record.num_tokens == sum(len(each) for each in samples_of(loader(), 4))
    assert record.num_weighted_tokens == sum(int((each.weights > 0).sum()) for each in samples_of(loader(), 4))
    assert record.num_microbatches == len(batch.microbatches)
    assert record.learning_rate == RATE
    assert record.seconds > 0


def test_gradients_of_an_earlier_step_are_forgotten() -> None:
    model = tiny_model()
    optimizer = optimizer_of(model)
    step(loader().batch(0), model, optimizer, learning_rate=0.0)
    again = step(loader().batch(0), model, optimizer, learning_rate=0.0)
    fresh = tiny_model()
    assert again.gradient_norm == step(loader().batch(0), fresh, optimizer_of(fresh), learning_rate=0.0).gradient_norm


def test_without_a_limit_gradients_are_not_scaled() -> None:
    model = tiny_model()
    record = step(loader().batch(0), model, optimizer_of(model), gradient_norm_max=None)
    after = torch.nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
    assert after.item() == pytest.approx(record.gradient_norm, rel=LOSS)
    assert record.gradient_norm > NORM_MAX


def test_algorithm_metrics_are_divided_once() -> None:
    class Counting(Sft):
        def loss_sum(self, logprobs: Logprobs, microbatch: Any) -> tuple[Tensor, dict[str, float]]:
            return super().loss_sum(logprobs, microbatch)[0], {"weights": float(microbatch.weights_T.sum())}

    model = tiny_model()
    record = step(loader().batch(0), model, optimizer_of(model), algorithm=Counting())
    assert record.metrics == {"weights": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("poison", "named"), [(math.nan, "loss is nan"), (math.inf, "loss is (nan|inf)"), (3e38, "(loss|gradient norm) is")]
)
def test_nothing_moves_if_something_is_not_finite(poison: float, named: str) -> None:
    model = tiny_model()
    optimizer = optimizer_of(model)
    step(loader().batch(0), model, optimizer)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = poison
    weights = copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(NonFiniteError, match=f"after step 7: {named}.*expected a finite number; no weight was moved"):
        step(batch_at(7), model, optimizer)
    assert all(torch.equal(value, weights[name]) or value.isnan().any() for name, value in model.state_dict().items())
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[number][key]) for key, value in state.items())


class InfiniteGradient(Sft):
    """A finite loss whose gradient is not: the root of something that is exactly zero."""

    def loss_sum(self, logprobs: Logprobs, microbatch: Any) -> tuple[Tensor, dict[str, float]]:
        total, metrics = super().loss_sum(logprobs, microbatch)
        return total + torch.sqrt((total - total.detach()).abs()), metrics


def test_finite_loss_with_a_gradient_that_is_not_is_refused_too() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    message = (
        r"after step 0: gradient norm is (nan|inf); expected a finite number; no weight was moved. hint: go on from "
        r"the last checkpoint with a lower --learning-rate-peak or a longer --warmup-fraction, or with --precision "
        r"fp32; if it comes at the same step again, look at that step's samples"
    )
    with pytest.raises(NonFiniteError, match=message):
        step(batch_at(0), model, optimizer_of(model), algorithm=InfiniteGradient())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def batch_at(number: int) -> Batch:
    return loader().batch(number)


def test_validation_is_the_mean_over_the_whole_set_and_moves_nothing() -> None:
    model = tiny_model(attention_dropout=0.5)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    batches = loader(samples_per_step=5)
    record = validate(
        [batches.batch(number) for number in range(batches.steps_per_epoch)],
        step=3,
        model=model,
        algorithm=Sft(),
        backend=Single("cpu", "fp32"),
    )
    assert record.loss == pytest.approx(oracle(model), rel=LOSS)
    assert record.num_weighted_tokens == sum(int((each.weights > 0).sum()) for each in EXAMPLES)
    assert record.step == 3
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator), "dropout is off"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def oracle(model: nn.Module) -> float:
    plain = copy.deepcopy(model).eval()
    plain.set_attn_implementation("sdpa")  # type: ignore[operator]  # a method of transformers' models
    return plain_loss(plain, EXAMPLES).item()


def test_validation_loss_that_is_not_finite_is_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="after step 3: validation loss is nan"):
        validate([batch_at(0)], step=3, model=model, algorithm=Sft(), backend=Single("cpu", "fp32"))


def test_bf16_computes_under_autocast_and_keeps_weights_and_moments_in_fp32() -> None:
    model = tiny_model()
    optimizer = optimizer_of(model)
    seen: list[torch.dtype] = []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    half = step(batch_at(0), model, optimizer, backend=Single("cpu", "bf16"))
    assert set(seen) == {torch.bfloat16}
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {torch.float32}
    whole = tiny_model()
    full = step(batch_at(0), whole, optimizer_of(whole))
    assert half.loss == pytest.approx(full.loss, rel=2e-2)
    assert half.loss != full.loss


def test_every_microbatch_is_announced_and_only_the_last_as_such() -> None:
    class Noting(Single):
        def __init__(self) -> None:
            super().__init__("cpu", "fp32")
            self.last: list[bool] = []

        def backward(self, loss: Tensor, *, is_last: bool) -> None:
            self.last.append(is_last)
            super().backward(loss, is_last=is_last)

    noting, model = Noting(), tiny_model()
    batch: Batch = loader(24).batch(0)
    assert isinstance(batch.microbatches[0], Microbatch)
    step(batch, model, optimizer_of(model), backend=noting)
    assert noting.last == [False] * (len(batch.microbatches) - 1) + [True]
