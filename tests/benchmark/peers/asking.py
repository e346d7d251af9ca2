"""Asks TRL's trainers and ours for the loss and the gradient of one batch.

Its trainers are made as anybody makes them, on a model of the same weights, and asked for their loss of a padded batch.
Ours are the packs that a step would see, several of them, and the sum divided once.

Shapes: B sequences of TRL's batch, T their tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.tolerances import GRADIENT_FP32
from training.algorithms.algorithm import Algorithm
from training.data.batch import Batch, Microbatch
from training.data.example import Example
from training.data.loader import Loader
from training.models.forward import logprobs
from training.models.tiny import tiny_model, tiny_tokenizer

LOSS = 1e-5
"""How far two losses of about 1 may be apart: sums of float32 in another order. Seen: 8e-7."""

BEGIN, PAD = tiny_tokenizer("none").bos_token_id, tiny_tokenizer("none").pad_token_id
COMPLETION_TOKENS_MAX = 12


Side = tuple[list[int], list[int]]
"""Token ids of a prompt and of a completion."""


@dataclass(frozen=True)
class Learned:
    """What one of the two came to."""

    loss: float
    gradients: Mapping[str, Tensor]


def moved(times: int) -> PreTrainedModel:
    """Our tiny model, pushed away from its first weights so many times, each time another way."""
    model = tiny_model()
    for number in range(times):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model


def theirs_of(base: Path, times: int) -> Any:
    """A model of TRL's with the weights of `moved(times)`, in the attention that transformers takes by itself."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_state_dict(moved(times).state_dict())
    return model


def settings(out: Path, **others: Any) -> dict[str, Any]:
    """What a trainer needs to be told to stay on the processor and to itself."""
    return {"output_dir": str(out), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, **others}


def taken(loss: Tensor, model: nn.Module) -> Learned:
    """Loss and gradients, with those of earlier calls removed."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    # PEFT aside, names are the same on both sides.
    return Learned(loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def ours(
    algorithm: Algorithm[Batch, Microbatch], examples: Sequence[Example], model: nn.Module, tokens: int = 64
) -> Learned:
    """One step over the examples in packs of so many tokens, as `training.step` adds it up."""
    batch = Loader(examples, samples_per_step=len(examples), tokens_per_rank_max=tokens, seed=0).batch(0)
    assert len(examples) == 1 or len(batch.microbatches) > 1
    total = sum((algorithm.loss_sum(partial(logprobs, model), each)[0] for each in batch.microbatches), torch.zeros(()))
    return taken(total / algorithm.divisor(batch), model)


def assert_same(one: Learned, other: Learned, scale: float = 1.0) -> None:
    """The loss within 1e-5 and the gradient within rounding of its largest entry; `scale` times the other."""
    assert one.loss == pytest.approx(scale * other.loss, abs=LOSS)
    assert_same_gradient(one, other, scale)


def assert_same_gradient(one: Learned, other: Learned, scale: float = 1.0) -> None:
    """Every weight has one on both sides, and they are the same."""
    assert one.gradients.keys() == other.gradients.keys()
    largest = max(each.abs().max().item() for each in one.gradients.values())
    assert largest > 0
    for name, gradient in one.gradients.items():
        assert (gradient - scale * other.gradients[name]).abs().max() <= GRADIENT_FP32 * largest, name


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """The rows filled up at their ends, int64 [B, T]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
