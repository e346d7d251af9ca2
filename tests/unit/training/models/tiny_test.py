"""Tiny models are the same for the same seed, disturb nothing, and meet what full-sized ones meet."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.chats import TWO_TURNS
from training.models.tiny import Architecture, save_tiny, tiny_model, tiny_tokenizer

CHAT = TWO_TURNS["messages"]
TOKENIZER = tiny_tokenizer("none")


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_seed_gives_one_model_and_another_seed_another(architecture: Architecture) -> None:
    one, same, other = (tiny_model(architecture, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    tiny_model()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_the_models_are_small_and_in_training_mode(architecture: Architecture) -> None:
    model = tiny_model(architecture)
    assert model.num_parameters() < 50_000
    assert model.training
    assert model.config.model_type == architecture
    assert model.config.vocab_size == len(tiny_tokenizer()) == 260


def test_the_set_covers_tied_embeddings_grouped_heads_and_scaled_logits() -> None:
    qwen, granite = tiny_model("qwen2"), tiny_model("granite", logits_scaling=4.0)
    assert qwen.get_output_embeddings().weight is qwen.get_input_embeddings().weight
    assert qwen.config.num_key_value_heads < qwen.config.num_attention_heads
    assert granite.config.logits_scaling == 4.0


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if "<|" not in text:
        assert len(ids) == len(text.encode())


def test_special_tokens_are_one_token_each() -> None:
    specials = ["<|begin|>", "<|end|>", "<|turn|>", "<|endoftext|>"]
    assert [TOKENIZER(special, add_special_tokens=False)["input_ids"] for special in specials] == [
        [256],
        [257],
        [258],
        [259],
    ]
    assert sorted(TOKENIZER.all_special_ids) == [256, 257, 258, 259]


def test_the_plain_template_is_the_marked_one_without_markers() -> None:
    marked, plain = (tiny_tokenizer(template).chat_template for template in ("markers", "plain"))
    assert "generation %}" in marked
    assert "generation %}" not in plain
    assert tiny_tokenizer("none").chat_template is None


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_saved_directory_loads_with_transformers_own_tools(architecture: Architecture, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "made" / "here", architecture, seed=4)
    loaded, made = AutoModelForCausalLM.from_pretrained(directory), tiny_model(architecture, seed=4)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), made.parameters(), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    text = "Ünï<|turn|>code 123  \n'll"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == tiny_tokenizer().apply_chat_template(
        CHAT, tokenize=False
    )
