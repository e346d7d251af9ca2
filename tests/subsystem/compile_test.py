"""Compiled layers: the run of those that are not, on every backend that takes them, and no pack is compiled for anew.

What is compiled is kept in a directory that all processes of this test share, so that most find it there. What else
they would each spend seconds on, their parent does once, before they fork.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.callback
import torch._dynamo.utils
import torch._inductor.compile_fx  # so that forked processes need not spend seconds on it
import torch._inductor.config
from torch import Tensor, nn
from torch._inductor.cpu_vec_isa import supported_vec_isa_list, valid_vec_isa_list
from transformers.models.llama.modeling_llama import LlamaMLP

import training.parallel.fsdp  # noqa: F401 - so that forked ranks need not spend seconds on it
from tests.subsystem.processes import forked, records_of, tensors_of
from tests.subsystem.ranks import NUM_STEPS, check_resumes_exactly, planned
from tests.support.examples import random_examples
from tests.support.tolerances import RANKS_FP32_RELATIVE, SMOKE_CURVE_BF16_RELATIVE
from training import run
from training.config import LoraConfig
from training.data.batch import Batch, microbatch
from training.errors import ModelError
from training.metrics.records import StepRecord
from training.models.compile import compile_layers
from training.models.forward import logits
from training.models.tiny import tiny_model
from training.parallel.single import machine
from training.recipes import train
from training.step import train_step

# Layers meet packs of other lengths with other numbers of documents at every step of these runs.
torch._dynamo.config.error_on_recompile = True
torch._inductor.config.compile_threads = 1
# Which instructions this processor has: torch builds a program for each kind, and has a Python of its own load it. What
# is compiled uses the first kind, so that nobody need ask for the others.
for instructions in list(supported_vec_isa_list):
    supported_vec_isa_list[:] = [instructions]
    valid_vec_isa_list.cache_clear()
    if valid_vec_isa_list():
        break

TRAINING_ALONE = {"validation_fraction": 0.0, "validation_steps_between": None}
"""Evaluation is compiled by itself, once, which takes as long again."""

PLACES: dict[str, dict[str, Any]] = {
    "single": {"backend": "single", "num_ranks": 1},
    "ddp": {"backend": "ddp", "num_ranks": 2},
    "fsdp": {"backend": "fsdp", "num_ranks": 2},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


FEATURES: dict[str, tuple[dict[str, Any], float]] = {
    "an adapter with dropout, noise and a loss in chunks": (
        {"lora": LoraConfig(rank=4, dropout=0.1), "neftune_alpha": 5.0, "loss_chunk_tokens": 32, **PLACES["single"]},
        RANKS_FP32_RELATIVE,
    ),
    "bf16 in shards": ({"precision": "bf16", **PLACES["fsdp"]}, SMOKE_CURVE_BF16_RELATIVE),
}
"""What else a run may have, and how near the two runs with it are. A smoke cell of the full depth has FSDP in fp32."""


def trained(directory: Path, name: str, **changed: Any) -> list[StepRecord]:
    exports = ("adapter", "merged") if "lora" in changed else ("model",)
    made = planned(directory, out=str(directory / name), exports=exports, **TRAINING_ALONE, **changed)
    assert forked(train, made) == 0
    return [each for each in records_of(Path(made.out)) if isinstance(each, StepRecord)]


@pytest.fixture
def compilers(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file for each process in which something is compiled.

    One rank compiles at a time: the other then finds most of it.
    """
    directory = tmp_path / "compilers"
    directory.mkdir()
    turn = (tmp_path / "turn").open("w")

    def begin(_: object) -> None:
        (directory / str(os.getpid())).touch()
        # Of this process alone: what is locked through a file that was open before the fork is locked for all.
        fcntl.lockf(turn, fcntl.LOCK_EX)

    def end(_: object) -> None:
        fcntl.lockf(turn, fcntl.LOCK_UN)

    with turn:
        torch._dynamo.callback.callback_handler.register_start_callback(begin)
        torch._dynamo.callback.callback_handler.register_end_callback(end)
        yield directory
        torch._dynamo.callback.callback_handler.remove_start_callback(begin)
        torch._dynamo.callback.callback_handler.remove_end_callback(end)


@pytest.fixture
def as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once a step has run any layer as it is written: alike layers are compiled once for all."""
    seen = tmp_path / "as written"
    steps: list[int] = []
    written = LlamaMLP.forward

    def step(batch: Batch, **options: Any) -> StepRecord:
        steps.append(batch.step)
        return train_step(batch, **options)

    def forward(layer: LlamaMLP, x: Tensor) -> Tensor:
        # What comes before the first step and after the last is meant to be as written.
        if not torch.compiler.is_compiling() and 0 < len(steps) < NUM_STEPS:
            seen.touch()
        return written(layer, x)

    monkeypatch.setattr(run, "train_step", step)
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    return seen


def assert_same(ours: list[StepRecord], plain: list[StepRecord], relative: float = RANKS_FP32_RELATIVE) -> None:
    assert len(ours) == len(plain) == NUM_STEPS
    for one, other in zip(ours, plain, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=relative)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=relative)


def names_of(out: Path) -> set[str]:
    """Of the tensors in the last checkpoint, whichever ranks have them."""
    return {each.partition("/")[2] for each in tensors_of(out / f"checkpoints/step-{NUM_STEPS:08d}")}


def test_it_is_allowed_here() -> None:
    assert machine().compiles_cpp, "the target is incompatible with machines where it is not"


@pytest.mark.parametrize("feature", FEATURES)
def test_with_whatever_else_a_run_has_it_is_the_run_of_layers_that_are_not_compiled(
    directory: Path, compilers: Path, as_written: Path, feature: str
) -> None:
    """Dropout and noise draw the same places: a compiler has generators of its own, and is kept from them."""
    settings, relative = FEATURES[feature]
    plain = trained(directory, f"plain, {feature}", **settings)
    assert not list(compilers.iterdir())
    as_written.unlink()
    # Nothing below the first layer is trained with an adapter, so its input needs no gradient and its code is its own.
    # That is two kinds of layer: to compile for a third raises.
    with torch._dynamo.config.patch(error_on_recompile="lora" not in settings, recompile_limit=2):
        ours = trained(directory, feature, compile=True, **settings)
    assert_same(ours, plain, relative)
    assert len(list(compilers.iterdir())) == settings["num_ranks"]
    assert not as_written.exists()
    assert names_of(directory / feature) == names_of(directory / f"plain, {feature}")


def test_it_takes_the_steps_of_layers_that_are_not_compiled_and_goes_on_exactly(
    directory: Path, compilers: Path, as_written: Path
) -> None:
    """In other processes, which compile, or find, everything again. Weights have the names that they have without.

    The export verifies that what was trained is what is written.
    """
    plain = trained(directory, "plain", **PLACES["single"])
    assert not list(compilers.iterdir())
    as_written.unlink()
    check_resumes_exactly(directory, compile=True, exports=("model",), **PLACES["ddp"], **TRAINING_ALONE)
    ours = [each for each in records_of(directory / "out") if isinstance(each, StepRecord)]
    assert len(list(compilers.iterdir())) == 4, "two ranks, twice"
    assert not as_written.exists()
    assert_same(ours, plain)
    assert names_of(directory / "out") == names_of(directory / "plain")


def test_a_layer_is_one_piece_before_attention_and_one_behind_for_packs_of_any_length() -> None:
    """The first is as long as the layer is wide, which is a coincidence and no rule."""
    model: nn.Module = tiny_model()
    compile_layers(model, "tiny")
    for lengths in ([20, 12], [7], [40, 3, 30]):
        logits(model, microbatch(random_examples(lengths)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_model_that_does_not_say_what_its_layers_are_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tiny: Linear, which does not say what its layers are; .*--model.compile"):
        compile_layers(nn.Linear(2, 2), "tiny")
