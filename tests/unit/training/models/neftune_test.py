"""Noise is of the strength that the formula gives each document, is in training alone, and follows the generator."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.support.examples import random_examples
from training.config import LoraConfig
from training.data.batch import microbatch
from training.models.forward import logits
from training.models.lora import add_adapter
from training.models.neftune import add_noise
from training.models.tiny import Architecture, tiny_model

LENGTHS = [9, 200, 40]
PACK = microbatch(random_examples(LENGTHS))
ALPHA = 5.0


def embeddings_seen(model: Any) -> Tensor:
    """What the first layer gets of the pack."""
    seen: list[Tensor] = []
    first = next(each for name, each in model.named_modules() if name.endswith("layers.0"))
    handle = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()[0]))
    logits(model, PACK)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_each_document_gets_uniform_noise_of_its_own_strength(architecture: Architecture) -> None:
    model = (
        tiny_model(architecture, embedding_multiplier=1.0) if architecture == "granite" else tiny_model(architecture)
    )
    clean = embeddings_seen(model)
    add_noise(model, ALPHA)
    noise = embeddings_seen(model) - clean
    for of_document, length in zip(noise.split(LENGTHS), LENGTHS, strict=True):
        uniform = of_document * (length * 32) ** 0.5 / ALPHA
        assert uniform.abs().max() <= 1 + 1e-4
        assert uniform.abs().max() > 0.98
        # A uniform variable has variance 1/3; of n of them the mean square is off by 0.3 / √n.
        assert uniform.square().mean().item() == pytest.approx(1 / 3, abs=5 * 0.3 / uniform.numel() ** 0.5)
        assert abs(uniform.mean().item()) < 5 * 0.58 / uniform.numel() ** 0.5


def test_noise_follows_the_generator_and_is_in_training_alone() -> None:
    model = tiny_model()
    clean = embeddings_seen(model)
    add_noise(model, ALPHA)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(embeddings_seen(model))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    state = torch.get_rng_state()
    assert torch.equal(embeddings_seen(model.eval()), clean)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_learns_with_noise_below_it_and_names_stay() -> None:
    plain = add_adapter(tiny_model(), LoraConfig(rank=2))
    base = tiny_model()
    add_noise(base, ALPHA)
    model = add_adapter(base, LoraConfig(rank=2))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(logits(model.train(), PACK), logits(model, PACK))
    logits(model, PACK).logsumexp(-1).sum().backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
