"""What is captured comes back bit for bit, or is refused by the name of what differs."""

import copy
import gc
import random
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.checkpoint.state import Tensors, arrays_digest, capture, frozen_digest, restore
from training.config import OptimizerKind
from training.errors import CheckpointError
from training.optimizer import optimizer_of


class Model(nn.Module):
    """Two tied weights, a matrix, a persistent buffer, one that is not, dropout, and a frozen layer if asked for."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 64)
        # Just large enough for moments in 8 bits.
        self.inner = nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(64, 5)
        self.head.weight = self.embedding.weight
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.embedding.requires_grad_(not frozen)

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.head(self.dropout(self.norm(self.inner(self.embedding(ids)))))
        return output


def optimizer_for(model: nn.Module, kind: OptimizerKind = "adamw", *, fused: bool = True) -> torch.optim.Optimizer:
    return optimizer_of(kind, model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-8, fused=fused, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> list[float]:
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (model(torch.randint(5, (4,))) ** 2).mean() * random.uniform(0.5, 2)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(
    num_steps: int = 3, kind: OptimizerKind = "adamw", *, frozen: bool = False, fused: bool = True
) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(0)
    random.seed(0)
    model = Model(frozen=frozen)
    optimizer = optimizer_for(model, kind, fused=fused)
    train(model, optimizer, num_steps)
    return model, optimizer


@pytest.mark.parametrize("kind", get_args(OptimizerKind))
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_going_on_from_a_capture_is_going_on(tmp_path: Path, frozen: bool, fused: bool, kind: OptimizerKind) -> None:
    model, optimizer = trained(kind=kind, frozen=frozen, fused=fused)
    saved = through_files(capture(model, optimizer), tmp_path)
    expected = train(model, optimizer, 4)

    torch.manual_seed(99)
    random.seed(99)
    other = Model(frozen=frozen)
    with torch.no_grad():
        if frozen:
            other.embedding.weight.copy_(model.embedding.weight)
    again = optimizer_for(other, kind, fused=fused)
    restore(saved, other, again)
    # What an optimizer keeps beside moments is of other types, and must not change them.
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert kinds_of(optimizer.state[one]) == kinds_of(again.state[two])
    assert train(other, again, 4) == expected
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def through_files(tensors: Tensors, directory: Path) -> Tensors:
    for name, of in tensors.items():
        save_file(of, directory / name)
    return {name: load_file(directory / name) for name in tensors}


def kinds_of(state: dict[str, object]) -> dict[str, object]:
    return {
        key: (value.dtype, value.shape) if isinstance(value, Tensor) else type(value) for key, value in state.items()
    }


NUM_OF_A_MATRIX = {"adamw": 3, "adamw_8bit": 7, "muon": 1}
"""AdamW: two moments and a count; in 8 bits, of each moment a table of codes and scales as well; Muon: one moment."""


@pytest.mark.parametrize("kind", get_args(OptimizerKind))
def test_moments_are_back_before_the_first_update(kind: OptimizerKind) -> None:
    model, optimizer = trained(kind=kind)
    saved = copy.deepcopy(capture(model, optimizer))
    other = Model()
    again = optimizer_for(other, kind)
    restore(saved, other, again)
    assert len(optimizer.state[model.inner.weight]) == NUM_OF_A_MATRIX[kind]
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[one].keys() == again.state[two].keys()
        for key, value in optimizer.state[one].items():
            same = again.state[two][key]
            assert torch.equal(value, same) if isinstance(value, Tensor) else value == same, key


def test_a_weight_that_no_gradient_has_reached_goes_on_without_moments() -> None:
    model, optimizer = trained(num_steps=0)
    model.inner.requires_grad_(False)
    train(model, optimizer, 2)
    model.inner.requires_grad_(True)
    saved = copy.deepcopy(capture(model, optimizer))
    other = Model()
    again = optimizer_for(other)
    restore(saved, other, again)
    assert again.state[other.norm.weight]
    assert not again.state[other.inner.weight]
    assert train(other, again, 2) == train_again(model, optimizer, saved, 2)


def train_again(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Tensors, num_steps: int) -> list[float]:
    restore(saved, model, optimizer)
    return train(model, optimizer, num_steps)


def test_what_was_mapped_from_a_file_is_let_go_of(tmp_path: Path) -> None:
    """A file that was deleted takes up the disk as long as a process has a part of it."""
    model, optimizer = trained()
    saved = through_files(capture(model, optimizer), tmp_path)
    restore(saved, model, optimizer)
    del saved
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_capture_names_what_is_trained_and_copies_nothing() -> None:
    model, optimizer = trained(frozen=True)
    tensors = capture(model, optimizer)
    assert set(tensors["parameters"]) == {
        "inner.weight",
        "inner.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }
    assert {name.rpartition("/")[0] for name in tensors["moments"]} == {
        "inner.weight",
        "inner.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
    }
    assert tensors["parameters"]["head.bias"].data_ptr() == model.head.bias.data_ptr()


def without(tensors: Tensors, file: str, name: str) -> Tensors:
    return tensors | {file: {each: value for each, value in tensors[file].items() if not each.startswith(name)}}


def test_what_differs_is_refused_by_name() -> None:
    model, optimizer = trained()
    tensors = capture(model, optimizer)
    parameters, moments = tensors["parameters"], tensors["moments"]
    hint = "the checkpoint belongs to another model: give the --model and --lora settings it was made with"
    cases: list[tuple[Tensors, str]] = [
        (
            without(tensors, "parameters", "head.bias"),
            "head.bias: the model has it, the checkpoint has not; expected the same tensors in both",
        ),
        (
            tensors | {"parameters": parameters | {"extra": torch.ones(1)}},
            "extra: the checkpoint has it, the model has not; expected the same tensors in both",
        ),
        (
            tensors | {"parameters": parameters | {"head.bias": torch.ones(7)}},
            "head.bias: torch.float32 [7]; expected torch.float32 [5]",
        ),
        (
            tensors | {"parameters": parameters | {"head.bias": torch.ones(5, dtype=torch.float64)}},
            "head.bias: torch.float64 [5]; expected torch.float32 [5]",
        ),
        (
            without(tensors, "moments", "head.bias"),
            "head.bias: a trained weight without all its moments; expected all moments of each trained weight",
        ),
        (
            without(tensors, "moments", "norm.bias/exp_avg_sq"),
            "norm.bias: a trained weight without all its moments; expected all moments of each trained weight",
        ),
        (
            tensors | {"moments": moments | {"extra/exp_avg": torch.ones(1)}},
            "extra: moments of a weight that this model does not train; expected the same weights",
        ),
        (
            tensors | {"moments": moments | {"head.bias/exp_avg": torch.ones(7)}},
            "head.bias/exp_avg: shape [7]; expected shape [5]",
        ),
    ]
    for damaged, message in cases:
        other = Model()
        with pytest.raises(CheckpointError) as refused:
            restore(damaged, other, optimizer_for(other))
        assert str(refused.value) == f"checkpoint tensor {message}. hint: {hint}"


def test_frozen_digest_sees_a_bit_of_any_frozen_weight_and_no_trained_one() -> None:
    model, _ = trained(frozen=True)
    before = frozen_digest(model)
    with torch.no_grad():
        model.head.bias[0] += 1
        assert frozen_digest(model) == before
        model.embedding.weight[4, 2] = torch.nextafter(model.embedding.weight[4, 2], torch.tensor(9.0))
        assert frozen_digest(model) != before
    assert frozen_digest(Model()) == ""
    assert frozen_digest(Model(frozen=True).to(torch.bfloat16)) != ""


def test_digest_of_arrays_sees_values_lengths_and_order() -> None:
    one, two = np.array([1, 2], dtype=np.int32), np.array([3], dtype=np.int32)
    digests = [arrays_digest(each) for each in ([one, two], [two, one], [one], [np.array([1, 2, 3], dtype=np.int32)])]
    assert len(set(digests)) == 4
    assert arrays_digest([one.copy(), two.copy()]) == digests[0]
