"""Liger's kernels are in the model afterwards, or it is an error: by itself it would change nothing and say nothing.

The package needs an accelerator, so a package of its name stands for it: what is tested is what is asked of it, and
what is done with what it leaves.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.examples import random_examples
from tests.support.tolerances import LOGPROB_FP32
from training.data.batch import microbatch
from training.errors import ModelError
from training.models.forward import logits
from training.models.liger import use_liger
from training.models.tiny import Architecture, tiny_model

STANDS_FOR_IT = """\
import json, pathlib, types

def norm(self, x):
    return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

def _apply_liger_kernel_to_instance(model, **asked):
    pathlib.Path(__file__).with_name("asked.json").write_text(json.dumps(asked))
    if model.config.model_type == "llama":
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = types.MethodType(norm, module)
"""
"""It knows one architecture, and of that its norm."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that holds a liger_kernel."""
    place = tmp_path / "liger_kernel"
    place.mkdir()
    (place / "__init__.py").write_text('__version__ = "0.6.0"\n')
    (place / "transformers.py").write_text(STANDS_FOR_IT)
    monkeypatch.syspath_prepend(tmp_path)
    yield place
    for name in [each for each in sys.modules if each.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


@torch.no_grad()
def test_its_kernels_compute_the_same_and_names_of_weights_stay(package: Path) -> None:
    plain, model = tiny_model(), tiny_model()
    use_liger(model, "tiny")
    kernels = {module.forward.__module__ for module in model.modules()} - {
        module.forward.__module__ for module in plain.modules()
    }
    assert kernels == {"liger_kernel.transformers"}
    assert model.state_dict().keys() == plain.state_dict().keys()
    pack = microbatch(random_examples([7, 12]))
    torch.testing.assert_close(logits(model, pack), logits(plain, pack), atol=LOGPROB_FP32, rtol=0)
    asked = json.loads((package / "asked.json").read_text())
    assert asked == {"cross_entropy": False, "fused_linear_cross_entropy": False}, "the loss is ours"


@pytest.mark.parametrize("architecture", ["qwen2", "granite", "qwen3_moe"])
def test_an_architecture_that_it_leaves_as_it_was_is_refused(package: Path, architecture: Architecture) -> None:
    with pytest.raises(ModelError) as caught:
        use_liger(tiny_model(architecture), "some/model")
    assert (package / "asked.json").exists()
    assert str(caught.value) == (
        f"some/model: the architecture {architecture}, for which Liger has no kernels; expected an architecture that "
        "the installed liger_kernel knows. hint: leave --model.liger out"
    )
