"""Liger's kernels in a model and in a run, on a CPU: Triton interprets them, so that they need no card.

What is proven is that the kernels which are put in compute what was there before, and train like it; how they are
compiled for a card, and how fast they are, is not. Qwen3's experts ask a card for the number of its processors.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tests.subsystem.processes import forked, records_of
from tests.subsystem.ranks import planned
from tests.support.examples import random_examples
from tests.support.tolerances import RANKS_FP32_RELATIVE
from training.config import LoraConfig
from training.data.batch import microbatch
from training.errors import ModelError
from training.metrics.records import StepRecord
from training.models.forward import logits
from training.models.liger import use_liger
from training.models.load import load_model
from training.models.tiny import Architecture, tiny_model
from training.recipes import train

# By name and of no type: a gigabyte of Triton is for this test alone, and not for the one that checks types.
language: Any = import_module("triton.language")
interpreter: Any = import_module("triton.runtime.interpreter")
libdevice: Any = import_module("triton.language.extra.libdevice")
assert import_module("triton.knobs").runtime.interpret, "expected TRITON_INTERPRET=1 before the start of Python"


@pytest.fixture(autouse=True)
def whole_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds what Triton's compiler has and its interpreter lacks: floats as arguments, a root of a card's library."""
    convert = interpreter._implicit_cvt

    def with_floats(given: Any) -> Any:
        if not isinstance(given, float):
            return convert(given)
        handle = interpreter.TensorHandle(np.array([given], dtype=np.float32), language.float32)
        return language.tensor(handle, language.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
    # Looked up when it is called, for the interpreter puts its own in place while a kernel runs.
    monkeypatch.setattr(libdevice, "rsqrt", lambda x: language.math.rsqrt(x))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "granite"])
def test_a_model_with_them_computes_what_it_did(architecture: Architecture) -> None:
    assert forked(check_computes_what_it_did, architecture) == 0


def check_computes_what_it_did(architecture: Architecture) -> None:
    """In a process of its own: Liger changes the classes of an architecture, for all models to come."""
    plain, ours = tiny_model(architecture), tiny_model(architecture)
    names = [name for name, _ in ours.named_parameters()]
    batch = microbatch(random_examples([20, 12, 7]))
    expected = logits(plain, batch)
    expected.square().sum().backward()
    use_liger(ours, architecture)
    assert [name for name, _ in ours.named_parameters()] == names
    got = logits(ours, batch)
    got.square().sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(got, expected), "other kernels round otherwise"
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() < 1e-5 * other.grad.norm(), name


def trained(directory: Path, name: str, **changed: Any) -> list[StepRecord]:
    """Two steps, for interpreted kernels take seconds; the plan is made for a CPU, and `liger` set afterwards."""
    alone = {"backend": "single", "num_ranks": 1, "validation_fraction": 0.0, "validation_steps_between": None}
    made = planned(directory, out=str(directory / name), num_steps=2, samples_per_step=2, **alone, **changed)
    assert forked(train, made) == 0
    return [each for each in records_of(Path(made.out)) if isinstance(each, StepRecord)]


def test_a_run_with_them_is_the_run_without_and_who_has_none_can_load_its_export(tmp_path: Path) -> None:
    """The run verifies what it exports, and this process, which has no kernels, reads it."""
    settings: dict[str, Any] = {"lora": LoraConfig(rank=4), "exports": ("merged",)}
    plain = trained(tmp_path, "plain", **settings)
    ours = trained(tmp_path, "ours", liger=True, **settings)
    assert len(ours) == len(plain) == 2
    for one, other in zip(ours, plain, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=RANKS_FP32_RELATIVE)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=RANKS_FP32_RELATIVE)
    assert [each.gradient_norm for each in ours] != [each.gradient_norm for each in plain], (
        "other kernels round otherwise"
    )
    batch = microbatch(random_examples([20, 12, 7]))
    got, expected = (logits(load_model(str(tmp_path / name / "merged")).model, batch) for name in ("ours", "plain"))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_an_architecture_without_any_is_refused() -> None:
    small = GPTNeoXConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ModelError, match=r"tiny: the architecture gpt_neox, for which .*leave --model.liger out"):
        use_liger(GPTNeoXForCausalLM(small), "tiny")
