"""One optimizer step, for every algorithm and every backend.

    loss = Σ over microbatches and ranks of loss_sum  /  divisor

The divisor is counted once over the *global* batch, and each microbatch's sum is divided by it before its backward
pass, so gradients add up to the gradient of the mean over all weighted tokens. A mean of per-microbatch means is
another number: it weighs the tokens of short microbatches more, and changes with how a batch was packed and with how
many ranks took part.

No weight moves if the loss or the gradient norm is not finite: a NaN that reaches the weights also reaches the next
checkpoint, and from there nothing brings the model back.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from training.algorithms.algorithm import Algorithm, Logprobs
from training.data.batch import Batch, Microbatch
from training.errors import NonFiniteError
from training.metrics.records import StepRecord, ValidationRecord
from training.models.forward import evaluating
from training.models.forward import logprobs as whole_logprobs
from training.parallel.backend import Backend


def train_step(
    batch: Batch,
    *,
    model: nn.Module,
    algorithm: Algorithm[Batch, Microbatch],
    optimizer: torch.optim.Optimizer,
    backend: Backend,
    learning_rate: float,
    gradient_norm_max: float | None,
    logprobs: Logprobs | None = None,
) -> StepRecord:
    """Moves the weights once and says what happened.

    Args:
        batch: this rank's microbatches, and the counts of the global batch.
        model: whose weights are moved.
        algorithm: what is learned.
        optimizer: of the model's weights.
        backend: what the ranks share.
        learning_rate: of this step.
        gradient_norm_max: gradients are scaled down to it; None never scales.
        logprobs: the model's answers to the algorithm; None runs its head on all positions at once.

    Raises:
        NonFiniteError: the loss or the gradient norm is not a finite number; weights and moments are as before.
    """
    started = time.perf_counter()
    logprobs = logprobs or partial(whole_logprobs, model)
    divisor = algorithm.divisor(batch)
    optimizer.zero_grad(set_to_none=True)

    loss = 0.0
    metrics: Counter[str] = Counter()
    for number, microbatch in enumerate(batch.microbatches, start=1):
        with backend.computing():
            loss_sum, metric_sums = algorithm.loss_sum(logprobs, microbatch.to(backend.device))
        backend.backward(loss_sum / divisor, is_last=number == len(batch.microbatches))
        loss += loss_sum.item() / divisor
        metrics.update(metric_sums)
    loss = backend.sum_over_ranks(loss)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = backend.gradient_norm(trained)
    _refuse_non_finite(batch.step, loss=loss, gradient_norm=norm.item())
    if gradient_norm_max is not None:
        backend.clip_gradients(trained, gradient_norm_max, norm)

    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return StepRecord(
        step=batch.step + 1,
        epoch=batch.epoch,
        loss=loss,
        gradient_norm=norm.item(),
        learning_rate=learning_rate,
        num_samples=batch.num_samples,
        num_tokens=batch.num_tokens,
        num_weighted_tokens=batch.num_weighted_tokens,
        num_microbatches=len(batch.microbatches) * backend.num_ranks,
        seconds=time.perf_counter() - started,
        metrics={name: backend.sum_over_ranks(total) / divisor for name, total in sorted(metrics.items())},
    )


@torch.no_grad()
def validate(
    batches: Iterable[Batch],
    *,
    step: int,
    model: nn.Module,
    algorithm: Algorithm[Batch, Microbatch],
    backend: Backend,
    logprobs: Logprobs | None = None,
) -> ValidationRecord:
    """The loss over all batches, divided once by the divisor of them all; dropout off, no weight moved.

    Raises:
        NonFiniteError: the loss is not a finite number.
    """
    started = time.perf_counter()
    logprobs = logprobs or partial(whole_logprobs, model)
    loss_sum = divisor = 0.0
    metrics: Counter[str] = Counter()
    num_weighted_tokens = 0
    with evaluating(model):
        for batch in batches:
            for microbatch in batch.microbatches:
                with backend.computing():
                    part, metric_sums = algorithm.loss_sum(logprobs, microbatch.to(backend.device))
                loss_sum += part.item()
                metrics.update(metric_sums)
            divisor += algorithm.divisor(batch)
            num_weighted_tokens += batch.num_weighted_tokens
    loss = backend.sum_over_ranks(loss_sum) / divisor
    _refuse_non_finite(step, validation_loss=loss)
    means = {name: backend.sum_over_ranks(total) / divisor for name, total in sorted(metrics.items())}
    return ValidationRecord(step, loss, num_weighted_tokens, time.perf_counter() - started, means)


def _refuse_non_finite(step: int, **values: float) -> None:
    """Raises on the first value that is not a number to go on with; names it as the records do."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"after step {step}",
                got=f"{name.replace('_', ' ')} is {value}",
                expected="a finite number; no weight was moved",
                hint="go on from the last checkpoint with a lower --learning-rate-peak or a longer --warmup-fraction, "
                "or with --precision fp32; if it comes at the same step again, look at that step's samples",
            )
