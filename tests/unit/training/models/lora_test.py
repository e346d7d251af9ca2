"""An adapter starts as nothing, learns alone, merges to what it computes, and survives the disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args
from warnings import catch_warnings, simplefilter

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support.examples import random_examples
from tests.support.tolerances import LOGPROB_FP32
from training.config import LoraConfig
from training.data.batch import microbatch
from training.errors import ModelError
from training.models.forward import logits, values
from training.models.load import load_model
from training.models.lora import add_adapter, load_adapter, merged, save_adapter
from training.models.tiny import Architecture, save_tiny, tiny_model

PACK = microbatch(random_examples([9, 14]))
CONFIG = LoraConfig(rank=4, alpha=8.0)


M = TypeVar("M", bound=nn.Module)

VARIANTS: dict[str, dict[str, bool]] = {"lora": {}, "dora": {"dora": True}, "rslora": {"rank_stabilized": True}}
CASES: list[tuple[Architecture, str]] = [
    (each, variant)
    for each in get_args(Architecture)
    for variant in VARIANTS
    if (each, variant) != ("qwen3_moe", "dora")
]
"""Each architecture with each variant, but DoRA on experts, which peft refuses."""


def trained_a_little(model: M) -> M:
    """Every adapter weight moved, as training would; B is zero before and an untrained merge proves nothing."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return logits(model.eval(), PACK)


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_a_head_of_one_value_learns_with_the_adapter_and_goes_where_it_goes(tmp_path: Path) -> None:
    """Merged, and saved and loaded onto a base whose own head is another."""

    def base() -> PreTrainedModel:
        return load_model(str(tmp_path / "base"), head="new value").model

    def said(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return values(model.eval(), PACK, torch.tensor([3, 8, 22]))

    save_tiny(tmp_path / "base")
    model = add_adapter(base(), CONFIG)
    with_head = [name for name in trainable(model) if "lora_" not in name]
    assert with_head == ["base_model.model.score.modules_to_save.default.weight"]
    assert not any("score" in name and "lora_" in name for name in trainable(model))
    values(model, PACK, torch.tensor([8])).sum().backward()
    assert model.get_parameter(with_head[0]).grad is not None
    trained_a_little(model)
    expected = said(model)
    assert (said(base()) - expected).abs().max() > 0.01
    torch.testing.assert_close(said(merged(model)), expected, rtol=0, atol=1e-5)
    save_adapter(model, tmp_path / "adapter")
    assert load_file(tmp_path / "adapter/adapter_model.safetensors")["base_model.model.score.weight"].shape == (1, 32)
    assert torch.equal(said(load_adapter(base(), tmp_path / "adapter")), expected)


@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_adapter_changes_nothing(dora: bool) -> None:
    before = out(tiny_model())
    torch.testing.assert_close(
        out(add_adapter(tiny_model(), replace(CONFIG, dora=dora))), before, atol=LOGPROB_FP32 if dora else 0, rtol=0
    )


def test_all_linear_is_every_linear_layer_but_the_head_and_nothing_else_learns() -> None:
    model = tiny_model()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = trainable(add_adapter(model, CONFIG))
    assert {name.removeprefix("base_model.model.").split(".lora_")[0] for name in names} == linear - {"lm_head"}
    assert len(names) == 2 * len(linear - {"lm_head"})


def test_named_layers_alone_are_adapted() -> None:
    names = trainable(add_adapter(tiny_model(), LoraConfig(rank=2, target_modules=("q_proj", "v_proj"))))
    assert len(names) == 2 * 2 * 2
    assert all(".q_proj." in name or ".v_proj." in name for name in names)


def test_all_linear_takes_the_experts_and_the_router_of_a_mixture_too_and_says_nothing_untrue() -> None:
    """Up and gate are one stack: as two matrices they have twice the rank. peft warns that they have not (0.21)."""
    with catch_warnings(record=True) as said:
        simplefilter("always")
        names = trainable(add_adapter(tiny_model("qwen3_moe"), CONFIG))
    assert not [each for each in said if "_pattern keys" in str(each.message)]
    layers = {name.split("layers.0.")[1].split(".lora_")[0] for name in names if "layers.0." in name}
    attention = {f"self_attn.{letter}_proj" for letter in "qkvo"}
    assert layers == attention | {"mlp.experts", "mlp.experts.base_layer", "mlp.gate"}


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_each_expert_has_an_adapter_of_the_same_scale(name: str) -> None:
    """By hand: of each matrix in the stack W + alpha / rank · B A, with its own rows of A and columns of B."""
    base = tiny_model("qwen3_moe").get_parameter(f"model.layers.0.mlp.experts.{name}").detach()
    model = trained_a_little(add_adapter(tiny_model("qwen3_moe"), CONFIG))
    wrapper = "base_model.model.model.layers.0.mlp.experts" + (".base_layer" if name == "gate_up_proj" else "")
    a, b = (model.get_parameter(f"{wrapper}.lora_{each}.default.weight") for each in "AB")
    num_experts, rank = len(base), CONFIG.rank * (2 if name == "gate_up_proj" else 1)
    assert (len(a), b.shape[1]) == (num_experts * rank, num_experts * rank)
    whole = merged(model).get_parameter(f"model.layers.0.mlp.experts.{name}")
    for expert in range(num_experts):
        delta = b[:, expert::num_experts] @ a[expert * rank : (expert + 1) * rank]
        torch.testing.assert_close(whole[expert], base[expert] + CONFIG.alpha / CONFIG.rank * delta)


@pytest.mark.parametrize(
    ("config", "where", "got"),
    [
        ({"dropout": 0.1}, "lora.dropout", "0.1, for the experts of qwen3_moe"),
        ({"dora": True}, "lora.dora", "true, for the experts of qwen3_moe"),
        (
            {"target_modules": ("experts",)},
            "lora.target_modules",
            "experts, which peft refuses (Target module Qwen3MoeExperts( (act_fn): SiLUActivation() ) is not supp",
        ),
    ],
)
def test_what_peft_cannot_do_to_experts_is_refused_by_the_setting(config: dict[str, Any], where: str, got: str) -> None:
    with pytest.raises(ModelError) as caught:
        add_adapter(tiny_model("qwen3_moe"), LoraConfig(rank=2, **config))
    assert caught.value.where == where
    assert caught.value.got.startswith(got)
    attention_alone = config | {"target_modules": ("q_proj", "v_proj")}
    assert trainable(add_adapter(tiny_model("qwen3_moe"), LoraConfig(rank=2, **attention_alone)))


def test_experts_that_all_linear_would_leave_out_are_refused() -> None:
    """For peft knows where the experts of Qwen's mixtures are, and not where those of Granite's are."""
    size: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
    granite: Any = "granitemoe"
    with pytest.raises(ModelError) as caught:
        add_adapter(tiny_model(granite, **size), CONFIG)
    assert caught.value.got == (
        "all-linear, which leaves 4 weights of granitemoe as they are, among them "
        "model.layers.0.block_sparse_moe.experts.down_proj"
    )
    named = LoraConfig(rank=2, target_modules=("q_proj", "v_proj"))
    assert trainable(add_adapter(tiny_model(granite, **size), named))


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (("q_proj", "query"), "'query', which the model does not have"),
        (("all-linear", "q_proj"), "all-linear beside other names"),
    ],
)
def test_a_layer_that_is_not_there_is_refused(targets: tuple[str, ...], got: str) -> None:
    with pytest.raises(ModelError) as caught:
        add_adapter(tiny_model(), LoraConfig(target_modules=targets))
    assert (caught.value.where, caught.value.got) == ("lora.target_modules", got)
    assert "q_proj" in caught.value.expected


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_merged_equals_the_adapters_forward(architecture: Architecture, variant: str) -> None:
    model = trained_a_little(add_adapter(tiny_model(architecture), replace(CONFIG, **VARIANTS[variant])))
    adapted = out(model)
    assert (adapted - out(tiny_model(architecture))).abs().max() > 0.05, "the adapter must matter for this to prove it"
    whole = merged(model)
    torch.testing.assert_close(out(whole), adapted, atol=1e-4, rtol=0)
    assert not any("lora" in name for name, _ in whole.named_parameters())


def test_merging_leaves_the_trained_model_as_it_was() -> None:
    model = trained_a_little(add_adapter(tiny_model(), CONFIG))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    merged(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert trainable(model)


@pytest.mark.parametrize(("rank_stabilized", "scale"), [(False, 8.0 / 4), (True, 8.0 / 2)])
def test_the_scale_is_alpha_over_rank_or_over_its_root(rank_stabilized: bool, scale: float) -> None:
    """By hand on one layer: W x + scale · B A x."""
    base = tiny_model().model.layers[0].mlp.up_proj.weight.detach().clone()
    model = trained_a_little(add_adapter(tiny_model(), replace(CONFIG, rank_stabilized=rank_stabilized)))
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    a, b = (layer.get_parameter(f"lora_{name}.default.weight") for name in ("A", "B"))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x @ (base + scale * b @ a).T, atol=1e-5, rtol=1e-5)


def test_the_same_seed_draws_the_same_adapter() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        model = add_adapter(tiny_model(), CONFIG)
        drawn.append([parameter.detach() for parameter in model.parameters() if parameter.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_dropout_acts_in_training_alone() -> None:
    model = trained_a_little(add_adapter(tiny_model(), LoraConfig(rank=4, dropout=0.5)))
    assert torch.equal(out(model), out(model))
    model.train()
    with torch.no_grad():
        assert not torch.equal(logits(model, PACK), logits(model, PACK))


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_a_saved_adapter_loads_onto_its_base(architecture: Architecture, variant: str, tmp_path: Path) -> None:
    model = trained_a_little(add_adapter(tiny_model(architecture), replace(CONFIG, **VARIANTS[variant])))
    save_adapter(model, tmp_path)
    assert torch.equal(out(load_adapter(tiny_model(architecture), tmp_path)), out(model))


def test_a_saved_adapter_holds_every_trained_weight_and_none_is_empty(tmp_path: Path) -> None:
    model = trained_a_little(add_adapter(tiny_model(), CONFIG))
    save_adapter(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    live = {name.replace(".default", ""): p for name, p in model.named_parameters() if p.requires_grad}
    assert saved.keys() == live.keys()
    assert all(torch.equal(saved[name], live[name]) and saved[name].numel() for name in live)


def test_a_directory_without_adapter_and_an_adapter_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the adapter cannot be loaded"):
        load_adapter(tiny_model(), tmp_path)
    save_adapter(add_adapter(tiny_model(), CONFIG), tmp_path)
    with pytest.raises(ModelError, match="the adapter cannot be loaded"):
        load_adapter(tiny_model(hidden_size=64), tmp_path)
