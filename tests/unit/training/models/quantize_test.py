"""4-bit weights hold what NF4 can hold, stay as they are, and turn back into the model that was trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn

from tests.support.examples import random_examples
from training.checkpoint.state import frozen_digest
from training.config import LoraConfig, Precision
from training.data.batch import microbatch
from training.models.forward import logits
from training.models.load import load_model
from training.models.lora import add_adapter, merged
from training.models.quantize import computing_in_fp32, dequantized, is_quantized, nf4
from training.models.tiny import save_tiny, tiny_model

PACK = microbatch(random_examples([9, 14]))
CONFIG = LoraConfig(rank=4, alpha=8.0)
ROUNDING = 1e-5
"""Of a logit, relative to the largest: float32 products in another order. Seen: under 2e-6."""

NF4 = [-1, -0.6961928, -0.5250731, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1]
"""The values of the paper's appendix E."""


def quantized(directory: Path, precision: Precision = "fp32", **variant: bool) -> Any:
    path = directory if (directory / "config.json").exists() else save_tiny(directory)
    base = load_model(str(path), quantization=nf4(precision)).model
    torch.manual_seed(3)
    model = add_adapter(base, replace(CONFIG, **variant))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def out(model: nn.Module) -> Tensor:
    was_training = model.training
    with torch.no_grad():
        result = logits(model.eval(), PACK)
    model.train(was_training)
    return result


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("layer", ["mlp.down_proj", "mlp.up_proj", "self_attn.q_proj"])
def test_each_weight_is_the_nearest_value_of_nf4_times_its_blocks_scale(tmp_path: Path, layer: str) -> None:
    """By definition: blocks of 64 along the rows, of which some are half as long.

    Scales are 8-bit too, which moves a value a little.
    """
    twin = dequantized(quantized(tmp_path))
    name = f"model.layers.1.{layer}.weight"
    plain = tiny_model().get_parameter(name).detach().reshape(-1, 64)
    got = twin.get_parameter(f"base_model.model.{name.replace('.weight', '.base_layer.weight')}").reshape(-1, 64)
    scale = plain.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = values[(plain / scale)[..., None].sub(values).abs().argmin(-1)] * scale
    assert relative(got, nearest) < 0.02
    assert 0.05 < relative(got, plain) < 0.2, "sixteen values are not many"


def test_linear_layers_but_the_head_are_in_4_bits_and_the_adapter_alone_learns(tmp_path: Path) -> None:
    model = quantized(tmp_path)
    assert is_quantized(model)
    assert not is_quantized(tiny_model())
    layers = [name for name, each in model.named_modules() if isinstance(each, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert not any("lm_head" in name for name in layers)
    before = frozen_digest(model)
    logits(model, PACK).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora" in name), name
    assert frozen_digest(model) == before


@pytest.mark.parametrize("variant", [{}, {"dora": True}, {"rank_stabilized": True}], ids=["lora", "dora", "rslora"])
def test_gradients_are_those_of_the_dequantized_model(tmp_path: Path, variant: dict[str, bool]) -> None:
    model = quantized(tmp_path, **variant)
    twin = dequantized(model)
    gradients = []
    for each in (model, twin):
        logits(each, PACK).logsumexp(-1).sum().backward()
        gradients.append({name: p.grad for name, p in each.named_parameters() if "lora" in name})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is not None
        assert other is not None
        assert relative(gradient, other) < ROUNDING, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", [{}, {"dora": True}, {"rank_stabilized": True}], ids=["lora", "dora", "rslora"])
def test_merged_is_the_dequantized_base_with_the_adapter_added(
    tmp_path: Path, precision: Precision, variant: dict[str, bool]
) -> None:
    model = quantized(tmp_path, precision, **variant)
    digest, exact = frozen_digest(model), out(model)
    whole = merged(model)
    assert not any(isinstance(each, bitsandbytes.nn.Linear4bit) for each in whole.modules())
    assert not hasattr(whole.config, "quantization_config")
    assert {each.dtype for each in whole.parameters()} == {torch.float32}
    with computing_in_fp32(model):
        assert relative(out(whole), out(model)) < ROUNDING
    assert torch.equal(out(model), exact), "the model computes as before"
    assert (relative(out(whole), exact) > 1e-3) == (precision == "bf16")
    assert frozen_digest(model) == digest
    assert model.training


def test_a_head_of_one_value_is_not_in_4_bits_and_goes_along_when_weights_turn_back(tmp_path: Path) -> None:
    base = load_model(str(save_tiny(tmp_path)), quantization=nf4("fp32"), head="new value").model
    model = add_adapter(base, CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    assert not any(isinstance(each, bitsandbytes.nn.Linear4bit) for each in base.get_submodule("score").modules())
    assert relative(out(merged(model)), out(model)) < ROUNDING


def test_digest_sees_a_weight_and_a_scale_that_changed(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    digests = [frozen_digest(quantized(path)), frozen_digest(quantized(path))]
    assert digests[0] == digests[1]
    model = quantized(path)
    weight = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj.base_layer").weight
    weight.data[0] ^= 1
    digests[1] = frozen_digest(model)
    weight.data[0] ^= 1
    assert frozen_digest(model) == digests[0]
    weight.quant_state.absmax[0] += 1
    assert len({*digests, frozen_digest(model)}) == 3


def test_evaluating_leaves_weights_in_the_order_in_which_they_train(tmp_path: Path) -> None:
    """On a CPU with bfloat16 instructions bitsandbytes would rearrange them here, and training would fail after."""
    model = quantized(tmp_path, "bf16")
    layers = [each for each in model.modules() if isinstance(each, bitsandbytes.nn.Linear4bit)]
    assert not any(each.support_avx512bf16_for_cpu for each in layers)
    before = frozen_digest(model)
    out(model)
    assert frozen_digest(model) == before
