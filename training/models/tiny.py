"""Tiny random models and a byte-level tokenizer, made in process: no download, no file, the same for the same seed.

For tests, and for a first run on a machine that can fetch nothing. The models are real architectures of transformers,
only narrow; the tokenizer is a real one of the tokenizers library, with no merges. So everything that a full-sized
model meets, these meet too: rotary positions, grouped heads, tied embeddings (qwen2), scaled logits (granite), experts
that a router chooses (qwen3_moe), chat templates with tools and reasoning.
"""

import re
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from training.models import attention as attention_per_document

Architecture = Literal["llama", "qwen2", "granite", "qwen3_moe"]
Template = Literal["markers", "plain", "none"]

BEGIN, END, TURN = "<|begin|>", "<|end|>", "<|turn|>"
PAD = "<|endoftext|>"
"""Named as in Qwen: beside a qwen2 config, transformers loads every tokenizer as Qwen's, which adds this token if the
vocabulary lacks it."""

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}{{ '<|turn|>tools\\n' + tools | tojson + '<|end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|turn|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}
{%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}
{{- '<|end|>' }}
{%- endgeneration %}
{%- else %}{{ message.content + '<|end|>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"""
"""A turn is `<|turn|>role⏎content<|end|>⏎`; what the assistant generates is marked."""


def tiny_tokenizer(template: Template = "markers") -> PreTrainedTokenizerFast:
    """A tokenizer whose 260 tokens are the bytes and four special tokens.

    Args:
        template: `markers` has generation markers; `plain` renders the same text without them, like most published
            templates; `none` has no chat template, like a base model.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([BEGIN, END, TURN, PAD])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it declares no types
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN],
        clean_up_tokenization_spaces=False,
    )
    if template == "markers":
        tokenizer.chat_template = CHAT_TEMPLATE
    elif template == "plain":
        tokenizer.chat_template = re.sub(r"\{%- (end)?generation %\}\n", "", CHAT_TEMPLATE)
    return tokenizer


def tiny_model(architecture: Architecture = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random float32 model of about 40,000 weights for `tiny_tokenizer`, with attention per document.

    Leaves torch's global generator as it was.

    Args:
        architecture: a model type of transformers.
        seed: of the weights.
        overrides: fields of the architecture's config, for instance `num_hidden_layers=1`.
    """
    assert attention_per_document.DOCUMENTS == "documents"
    tokenizer = tiny_tokenizer("none")
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        # Wider than usual: with 32 dimensions the usual 0.02 gives all but uniform predictions, which test nothing.
        "initializer_range": 0.1,
        "tie_word_embeddings": architecture == "qwen2",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "qwen3_moe":
        settings |= {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = AutoConfig.for_model(architecture, **(settings | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # it declares no types
            config, dtype=torch.float32, attn_implementation="documents"
        )
    model.train()
    return model


def save_tiny(
    directory: str | Path, architecture: Architecture = "llama", *, seed: int = 0, template: Template = "markers"
) -> Path:
    """Writes model and tokenizer as a Hugging Face directory, made if absent; returns it."""
    directory = Path(directory)
    tiny_model(architecture, seed=seed).save_pretrained(directory)
    tiny_tokenizer(template).save_pretrained(directory)
    return directory
