"""A model loads with the tokenizer that belongs to it, or the message says what is missing and what to do."""

import itertools
import json
from pathlib import Path
from typing import get_args

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.examples import random_examples
from training.data.batch import microbatch
from training.errors import ModelError
from training.models.attention import DocumentStarts
from training.models.forward import logits
from training.models.load import (
    check_documents_stay_apart,
    check_prompts_can_be_shared,
    load_model,
    load_tokenizer,
)
from training.models.quantize import nf4
from training.models.tiny import Architecture, save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_saved_model_loads_to_the_same_logits(architecture: Architecture, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path, architecture, seed=3)
    model, tokenizer = load_model(str(directory))
    pack = microbatch(random_examples([5, 9]))
    assert torch.equal(logits(model, pack), logits(tiny_model(architecture, seed=3), pack))
    assert model.training
    assert model.dtype == torch.float32
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer("Ö<|end|>")["input_ids"] == tiny_tokenizer()("Ö<|end|>")["input_ids"]


def test_a_tilde_is_the_home_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(directory.parent))
    assert load_model("~/tiny").tokenizer.eos_token == "<|end|>"


def test_a_loss_of_the_router_that_nobody_computes_is_refused(tmp_path: Path) -> None:
    """It is off unless config.json asks for it: then transformers would compute it, and the loss would not have it."""
    path = save_tiny(tmp_path, "qwen3_moe")
    config = json.loads((path / "config.json").read_text())
    assert not config["output_router_logits"]
    assert config["router_aux_loss_coef"]
    load_model(str(path))
    (path / "config.json").write_text(json.dumps(config | {"output_router_logits": True}))
    with pytest.raises(ModelError, match=r"config\.json has output_router_logits, which adds a loss of the router's"):
        load_model(str(path))


def test_experts_that_would_not_be_in_4_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(str(save_tiny(tmp_path, "qwen3_moe")), quantization=nf4("fp32"))
    assert caught.value.got == (
        "Qwen3MoeForCausalLM holds matrices in stacks (of model.layers.0.mlp.experts.gate_up_proj), which would stay "
        "in 32 bits"
    )


def test_a_missing_directory_is_told_from_a_hub_name(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none"), "./none", "~/none/at/all", "a/b/c"):
        with pytest.raises(ModelError, match="there is no such directory; expected a model directory"):
            load_model(path)


def test_a_file_and_a_directory_without_config_say_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="it is a file"):
        load_model(str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"the directory has no config\.json"):
        load_model(str(tmp_path))


def test_a_hub_name_without_network_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        load_model("no-such-owner/no-such-model")
    assert caught.value.where == "no-such-owner/no-such-model"
    assert "in this machine's hub cache or on a reachable hub" in caught.value.expected
    assert caught.value.hint.startswith("without a network, download it elsewhere")


def test_a_tokenizer_without_chat_template_is_refused_unless_text_is_trained(tmp_path: Path) -> None:
    path = str(save_tiny(tmp_path, template="none"))
    with pytest.raises(
        ModelError, match=r"the tokenizer has no chat template; .*hint: use the model's instruct varian"
    ):
        load_model(path)
    assert load_model(path, needs_chat_template=False).tokenizer.chat_template is None
    assert load_tokenizer(path, needs_chat_template=False).eos_token == "<|end|>"


def test_more_tokens_than_embeddings_are_refused(directory: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(ModelError, match="the tokenizer has 261 tokens and the model 260 embeddings"):
        load_model(str(directory))


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_in_at_random(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, among them model.layers.1.mlp.up_proj.weight"):
        load_model(str(directory))


def test_weights_of_another_shape_are_refused(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(
        ModelError, match=r"has another shape for 6 weights, among them model.layers.0.mlp.down_proj.weight"
    ):
        load_model(str(directory))


@pytest.mark.parametrize("num_bytes", [0, 7, 100, 5000])
def test_a_torn_weights_file_is_refused(directory: Path, num_bytes: int) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(str(directory))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_broken_json_file_is_refused(directory: Path, name: str) -> None:
    (directory / name).write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(str(directory))
    assert caught.value.hint.startswith("check that the download is complete")


def test_missing_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_model(str(directory))


def test_an_architecture_that_is_no_causal_language_model_is_refused(directory: Path) -> None:
    AutoConfig.for_model("t5", vocab_size=260, d_model=32).save_pretrained(directory)
    with pytest.raises(ModelError, match=r"the model cannot be loaded \(Unrecognized configuration class"):
        load_model(str(directory))


MIXING = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 4},
}


@pytest.mark.parametrize("architecture", MIXING)
def test_an_architecture_that_mixes_documents_is_refused(architecture: str) -> None:
    """A state from token to token, and positions of its own making: neither is known to us by name."""
    config = AutoConfig.for_model(architecture, vocab_size=260, **MIXING[architecture])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with pytest.raises(ModelError, match=r"lets a packed document see the one before it"):
        check_documents_stay_apart(model, architecture)


def test_kernels_of_accelerators_are_asked_for_by_the_names_that_transformers_has_for_them(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    assert load_model(str(tmp_path), attention="flex").model.config._attn_implementation == "flex_attention"
    with pytest.raises(ModelError, match=r"FlashAttention2"):
        load_model(str(tmp_path), attention="flash")


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_the_check_passes_and_leaves_the_model_as_it_was(attention: str) -> None:
    model = tiny_model().eval()
    model.set_attn_implementation(attention)
    check_documents_stay_apart(model, "tiny")
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_check_turns_red_when_a_mask_of_ones_is_planted() -> None:
    """The planted bug: somebody passes an attention mask after all."""
    model = tiny_model()
    model.set_attn_implementation("sdpa")
    honest = model.forward

    def with_mask(**inputs: object) -> object:
        ids = inputs["input_ids"]
        assert isinstance(ids, torch.Tensor)
        return honest(**inputs | {"attention_mask": torch.ones_like(ids)})

    model.forward = with_mask
    with pytest.raises(ModelError, match="lets a packed document see the one before it"):
        check_documents_stay_apart(model, "tiny")


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_architecture_of_ours_reads_a_shared_prompt_as_its_own(architecture: Architecture) -> None:
    check_prompts_can_be_shared(tiny_model(architecture), architecture)


@pytest.mark.parametrize("lost", ["positions", "prompts"])
def test_a_model_that_reads_a_shared_prompt_otherwise_is_refused(lost: str) -> None:
    """The planted bugs: positions that begin anew at each document, and an attention that is not told of prompts."""
    model = tiny_model()
    honest = model.forward

    def forgetful(**inputs: object) -> object:
        starts = inputs["document_starts"]
        assert isinstance(starts, DocumentStarts)
        if lost == "prompts":
            return honest(**inputs | {"document_starts": DocumentStarts(starts.positions)})
        each = [torch.arange(end - start) for start, end in itertools.pairwise(starts.positions)]
        return honest(**inputs | {"position_ids": torch.cat(each)[None]})

    model.forward = forgetful
    with pytest.raises(ModelError, match=r"reads a shared prompt otherwise .* add --share-prompts false"):
        check_prompts_can_be_shared(model, "tiny")
