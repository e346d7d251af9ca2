"""An export computes what the trained model computes, or there is no export."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from training.checkpoint.export import BYTES_PER_FILE_MAX, MERGE_TOLERANCE, export
from training.config import LoraConfig
from training.errors import ExportError, ModelError
from training.models.attention import DocumentStarts
from training.models.load import load_model
from training.models.lora import add_adapter, load_adapter
from training.models.tiny import Architecture, save_tiny
from training.plan import ExportKind

IDS_1T = torch.tensor([[3, 141, 59, 26, 5, 35, 8, 97, 93]])


def trained(
    directory: Path, *, lora: bool, architecture: Architecture = "llama", **variant: bool
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A loaded model of which every trained weight was moved, as training would."""
    model: Any
    model, tokenizer = load_model(str(save_tiny(directory, architecture)))
    if lora:
        model = add_adapter(model, LoraConfig(rank=4, alpha=8.0, **variant))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, tokenizer


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """As a user would ask for them: no positions, no packing."""
    result: Tensor = model.eval()(input_ids=IDS_1T, document_starts=DocumentStarts([0, IDS_1T.shape[1]])).logits
    return result


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_model_reloads_to_the_same_logits(tmp_path: Path, architecture: Architecture) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=False, architecture=architecture)
    path = export(model, tokenizer, tmp_path / "model", kind="model", base_path="")
    again: Any = AutoModelForCausalLM.from_pretrained(path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_an_export_is_checked_without_the_kernel_of_an_accelerator_and_goes_on_to_have_it(tmp_path: Path) -> None:
    """Put together on the CPU, where flex attention would have to be compiled, and flash attention cannot run."""
    model, tokenizer = trained(tmp_path / "base", lora=True)
    asked_with = set()
    base = model.get_base_model()
    base.set_attn_implementation("flex_attention")
    base.register_forward_pre_hook(lambda *_: asked_with.add(base.config._attn_implementation))
    for kind in get_args(ExportKind)[1:]:
        export(model, tokenizer, tmp_path / kind, kind=kind, base_path=str(tmp_path / "base"))
    assert asked_with == {"sdpa"}
    assert base.config._attn_implementation == "flex_attention"


def test_experts_with_an_adapter_reload_to_the_same_logits(tmp_path: Path) -> None:
    """The adapter is of the whole stack of them, and in the merged model each is a weight by itself."""
    model, tokenizer = trained(tmp_path / "base", lora=True, architecture="qwen3_moe")
    base_path = str(tmp_path / "base")
    adapter = export(model, tokenizer, tmp_path / "adapter", kind="adapter", base_path=base_path)
    merged = export(model, tokenizer, tmp_path / "merged", kind="merged", base_path=base_path)
    expected = logits(model)
    base: Any = AutoModelForCausalLM.from_pretrained(base_path)
    assert (logits(base) - expected).abs().max() > 0.1, "the adapter does something"
    torch.testing.assert_close(logits(load_adapter(base, adapter)), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), expected, rtol=0, atol=1e-4)
    plain, whole = (load_file(each / "model.safetensors") for each in (tmp_path / "base", merged))
    moved = {name for name, value in whole.items() if not torch.equal(value, plain[name])}
    assert {name for name in whole if ".mlp." in name} <= moved, "experts and router"


@pytest.mark.parametrize("kind", ["model", "merged"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_weights_of_several_files_have_an_index_and_are_the_same_model(
    tmp_path: Path, architecture: Architecture, kind: ExportKind
) -> None:
    """Also as the base of the next run. Experts, which are one weight here, are written one by one."""
    num_bytes = 40_000
    model, tokenizer = trained(tmp_path / "base", lora=kind == "merged", architecture=architecture)
    places = {"one": BYTES_PER_FILE_MAX, "several": num_bytes}
    one, several = (
        export(model, tokenizer, tmp_path / name, kind=kind, base_path=str(tmp_path / "base"), bytes_per_file_max=most)
        for name, most in places.items()
    )
    assert [each.name for each in one.glob("model*")] == ["model.safetensors"]
    files = {each.name: load_file(each) for each in several.glob("*.safetensors")}
    assert len(files) > 1
    assert all(sum(value.nbytes for value in each.values()) <= num_bytes for each in files.values())
    index = json.loads((several / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == {name: file for file, weights in files.items() for name in weights}
    whole = load_file(one / "model.safetensors")
    assert whole.keys() == index.keys()
    assert all(torch.equal(files[file][name], whole[name]) for name, file in index.items())
    for again in (AutoModelForCausalLM.from_pretrained(several), load_model(str(several)).model):
        torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-4)
    (several / next(iter(files))).unlink()
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(str(several))


@pytest.mark.parametrize("variant", [{}, {"dora": True}, {"rank_stabilized": True}], ids=["lora", "dora", "rslora"])
def test_adapter_and_merged_reload_to_the_same_logits_and_leave_the_model_alone(
    tmp_path: Path, variant: dict[str, bool]
) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=True, **variant)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base_path = str(tmp_path / "base")
    adapter = export(model, tokenizer, tmp_path / "adapter", kind="adapter", base_path=base_path)
    merged = export(model, tokenizer, tmp_path / "merged", kind="merged", base_path=base_path)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    expected = logits(model)
    base: Any = AutoModelForCausalLM.from_pretrained(base_path)
    assert (logits(base) - expected).abs().max() > 0.1, "the adapter does something"
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(load_adapter(base, adapter)), expected, rtol=0, atol=1e-5)
    weights = load_file(adapter / "adapter_model.safetensors")
    per_layer = 3 if "dora" in variant else 2
    assert len(weights) == per_layer * 7 * 2, "two matrices, and DoRA's lengths, for seven linear layers in two blocks"
    assert all(value.abs().sum() > 0 for value in weights.values())
    assert not any("lora" in name for name in load_file(merged / "model.safetensors"))


def test_an_adapter_of_a_reward_model_takes_its_head_along(tmp_path: Path) -> None:
    """Onto a language model, which has none; as people load one."""
    path = str(save_tiny(tmp_path / "base"))
    loaded, tokenizer = load_model(path, head="new value")
    model: Any = add_adapter(loaded, LoraConfig(rank=4, alpha=8.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapter = export(model, tokenizer, tmp_path / "adapter", kind="adapter", base_path=path)
    merged = export(model, tokenizer, tmp_path / "merged", kind="merged", base_path=path)
    expected = logits(model)
    assert expected.shape == (1, 1)
    again = AutoPeftModelForSequenceClassification.from_pretrained(str(adapter), num_labels=1)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)
    whole = AutoModelForSequenceClassification.from_pretrained(merged)
    torch.testing.assert_close(logits(whole), expected, rtol=0, atol=1e-4)


def test_export_has_the_tokenizer_and_its_chat_template(tmp_path: Path) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=False)
    again = AutoTokenizer.from_pretrained(export(model, tokenizer, tmp_path / "model", kind="model", base_path=""))
    messages = [{"role": "user", "content": "Grüße"}]
    assert again.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)


def test_config_is_one_that_other_programs_understand(tmp_path: Path) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=False)
    path = export(model, tokenizer, tmp_path / "model", kind="model", base_path="")
    config = json.loads((path / "config.json").read_text())
    assert "documents" not in json.dumps(config)
    assert config["use_cache"]


def test_new_export_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").write_text("")
    (tmp_path / ".unfinished-model").mkdir()
    export(model, tokenizer, tmp_path / "model", kind="model", base_path="")
    assert not (tmp_path / "model" / "stale").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["base", "model"]


class Damaging:
    """Stands where the tokenizer does, which is written last, and damages what was written before."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, damage: Any) -> None:
        self.tokenizer, self.damage = tokenizer, damage

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def save_pretrained(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        self.damage(directory)


def one_weight_off(directory: Path) -> None:
    (path,) = directory.glob("*.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if "q_proj" in name)
    weights[name][0] += 0.5
    save_file(weights, path, {"format": "pt"})


def adapter_forgotten(directory: Path) -> None:
    (path,) = directory.glob("*.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path, {"format": "pt"})


def another_scale(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["rms_norm_eps"] = 0.1
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("model", one_weight_off),
        ("model", another_scale),
        ("adapter", one_weight_off),
        ("adapter", adapter_forgotten),
        ("merged", one_weight_off),
        ("merged", another_scale),
    ],
)
def test_export_that_computes_something_else_is_refused_and_not_left(
    tmp_path: Path, kind: ExportKind, damage: Any
) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=kind != "model")
    damaging: Any = Damaging(tokenizer, damage)
    with pytest.raises(ExportError) as refused:
        export(model, damaging, tmp_path / "out", kind=kind, base_path=str(tmp_path / "base"))
    assert str(refused.value).startswith(f"{tmp_path}/out: the {kind}, loaded again, computes other logits (by ")
    assert str(refused.value).endswith(
        "hint: nothing is lost: the checkpoint has the trained weights. Please report this with the model's name"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["base"]


def test_tokenizer_that_changes_on_the_way_is_refused(tmp_path: Path) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=False)
    damaging: Any = Damaging(tokenizer, lambda directory: (directory / "chat_template.jinja").write_text("other"))
    with pytest.raises(ExportError) as refused:
        export(model, damaging, tmp_path / "out", kind="model", base_path="")
    assert str(refused.value) == (
        f"{tmp_path}/out: the tokenizer, loaded again, has another vocabulary or chat template; expected those that "
        "the model was trained with. hint: copy tokenizer.json and chat_template.jinja from the base model. Please "
        "report this with its name"
    )


def test_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError) as refused:
        export(model, tokenizer, tmp_path / "file" / "model", kind="model", base_path="")
    assert str(refused.value).startswith(f"{tmp_path}/file/model: the model cannot be written or read again (")
    assert str(refused.value).endswith(
        "; expected a directory with room for it. hint: make room and give the same command again: it goes straight "
        "from the last checkpoint to the export"
    )


def test_merging_stays_far_inside_its_tolerance(tmp_path: Path) -> None:
    model, tokenizer = trained(tmp_path / "base", lora=True)
    path = export(model, tokenizer, tmp_path / "merged", kind="merged", base_path=str(tmp_path / "base"))
    again: Any = AutoModelForCausalLM.from_pretrained(path, attn_implementation="documents")
    difference = (logits(again) - logits(model)).abs().max() / logits(model).abs().max()
    assert difference < MERGE_TOLERANCE / 100
