"""What has to be remembered for a run to go on as if it had never stopped, and how it is put back.

    parameters   every trained weight, and buffers that belong to the model's state
    moments      what the optimizer keeps for each weight, under the weight's name: moments, a count of steps
    random       states of the random generators: dropout draws from them

The rest is a function of the step number: the learning rate, the order of samples, the next batch. What is frozen (all
of a model under an adapter) is not copied into each checkpoint; a digest says whether it is still the same.

Tensors are looked up by name, never by position, and every name and shape must agree: a weight that is silently left at
its initial value, or a moment at zero, looks like a healthy run for a while.
"""

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint.manifest import file_of_rank
from training.errors import CheckpointError
from training.parallel.backend import Ranks
from training.parallel.shards import part_as, part_of, shape_of, sharded_as

Tensors = dict[str, dict[str, Tensor]]
"""Of each file, its tensors by name."""


class Made(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for and not kept: one whole weight at a time is in memory."""

    def __init__(self, names: Collection[str], make: Callable[[str], Tensor]) -> None:
        """Of these names, by this function."""
        self._names = names
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, made anew."""
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)


NO_GRADIENT_YET = "no gradient yet"
"""Stands for the moments of a weight that no sample has reached, and which has none: absent, they would look lost."""

BESIDE_MOMENTS = ("absmax", "qmap")
"""Beginnings of what an 8-bit optimizer keeps beside moments: a scale for each block, and tables of codes."""


def capture(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """This rank's part of the tensors of the model, the optimizer and the random generators, not copied."""
    moments = {
        f"{name}/{key}": _tensor(key, value)
        for name, parameter in _trained(model).items()
        for key, value in (optimizer.state[parameter] or {NO_GRADIENT_YET: 0}).items()
    }
    generators = {"cpu": torch.get_rng_state(), "python": _python_generator()}
    for device in _accelerators(model):
        generators[str(device)] = torch.get_device_module(device).get_rng_state(device)
    return {"parameters": _state(model), "moments": moments, "random": generators}


def files_of(tensors: Tensors, ranks: Ranks, *, num_shards: int) -> Tensors:
    """The tensors under the names of the files that this rank writes: its own, and its part of the first copy's.

    Args:
        tensors: what `capture` returned.
        ranks: who takes part.
        num_shards: ranks, beginning with the first, that hold a copy of parameters and moments between them.
    """
    files = {}
    for name, values in tensors.items():
        if name == "random":
            files[file_of_rank(name, ranks.rank, ranks.num_ranks)] = values
        elif ranks.rank < num_shards:
            files[file_of_rank(name, ranks.rank, num_shards) if num_shards > 1 else name] = values
    return files


def restore(
    tensors: Mapping[str, Mapping[str, Tensor]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    is_whole: bool = False,
) -> None:
    """Puts captured tensors back into a model and an optimizer built from the same plan.

    Args:
        tensors: what `capture` returned on this rank, or `load` has joined.
        model: its trained weights and buffers are overwritten.
        optimizer: gets the moments.
        is_whole: the tensors are joined from all ranks, and this rank takes its part of each; generators, which belong
            to ranks, are left alone.

    Raises:
        CheckpointError: a name, shape or type differs; nothing of the optimizer has been touched then.
    """
    trained = _trained(model)
    if is_whole:
        tensors = _parts(tensors, trained)
    _copy(tensors["parameters"], _state(model))
    number_of = {
        parameter: number
        for number, parameter in enumerate(each for group in optimizer.param_groups for each in group["params"])
    }
    states: dict[int, dict[str, Tensor | int]] = {number: {} for number in number_of.values()}
    for full_name, value in tensors["moments"].items():
        name, _, key = full_name.rpartition("/")
        if name not in trained:
            raise _differs(name, "moments of a weight that this model does not train", "the same weights")
        expected = part_of(trained[name]).shape
        if value.ndim and not key.startswith(BESIDE_MOMENTS) and value.shape != expected:
            raise _differs(full_name, f"shape {list(value.shape)}", f"shape {list(expected)}")
        states[number_of[trained[name]]][key] = _value(key, value, trained[name])
    name_of = {parameter: name for name, parameter in trained.items()}
    for group in optimizer.param_groups:
        of_group = {parameter: states[number_of[parameter]] for parameter in group["params"]}
        complete = {key for state in of_group.values() for key in state} - {NO_GRADIENT_YET}
        for parameter, state in of_group.items():
            if state.keys() == {NO_GRADIENT_YET}:
                state.clear()
            elif not complete or state.keys() != complete:
                name = name_of[parameter]
                raise _differs(name, "a trained weight without all its moments", "all moments of each trained weight")
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})

    if is_whole:
        return
    torch.set_rng_state(tensors["random"]["cpu"])
    _set_python_generator(tensors["random"]["python"])
    for device in _accelerators(model):
        torch.get_device_module(device).set_rng_state(tensors["random"][str(device)].cpu(), device)


def _tensor(key: str, value: Tensor | int) -> Tensor:
    """What an optimizer keeps, as a checkpoint holds it; not copied, but for tables that many weights share."""
    if isinstance(value, int):
        return torch.tensor(value)
    return value.clone() if key.startswith(BESIDE_MOMENTS) else part_of(value)


def _value(key: str, saved: Tensor, weight: Tensor) -> Tensor | int:
    """The same as the optimizer has it: a moment is sharded with its weight, and a whole number is an int."""
    if not saved.ndim and saved.dtype == torch.int64:
        return int(saved)
    # Copied: what was loaded is mapped to its file, which takes up the disk as long as anything holds on to it.
    own = saved.clone()
    return sharded_as(own, weight) if own.ndim and not key.startswith(BESIDE_MOMENTS) else own


def _parts(tensors: Mapping[str, Mapping[str, Tensor]], trained: Mapping[str, nn.Parameter]) -> dict[str, Made]:
    """This rank's part of joined tensors; those that no weight of this model asks for stay whole, to be refused."""

    def part(file: str, name: str) -> Tensor:
        value = tensors[file][name]
        of_weight, _, key = name.rpartition("/") if file == "moments" else (name, "", "")
        weight = trained.get(of_weight)
        if weight is None or not value.ndim or key.startswith(BESIDE_MOMENTS):
            return value
        if tuple(value.shape) != shape_of(weight):
            raise _differs(name, f"shape {list(value.shape)}", f"shape {list(shape_of(weight))}")
        return part_as(value, weight)

    return {file: Made(values, partial(part, file)) for file, values in tensors.items()}


def trained_shapes(model: nn.Module) -> dict[str, list[int]]:
    """The shape of each trained weight by name, all ranks' parts together."""
    return {name: list(shape_of(each)) for name, each in _trained(model).items()}


def replicated_names(model: nn.Module) -> list[str]:
    """Names of captured parameters that every rank holds in full however weights are sharded: buffers."""
    return sorted(_state(model).keys() - _trained(model).keys())


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 over every weight that is not trained, names and shapes included; "" if all are."""
    digest = hashlib.sha256()
    frozen = [(name, each) for name, each in model.named_parameters() if not each.requires_grad]
    for name, parameter in frozen:
        digest.update(f"{name}{list(parameter.shape)}{parameter.dtype}".encode())
        # A weight of 4 bits stands for other numbers with other scales.
        scales = parameter.quant_state.as_dict(packed=True) if hasattr(parameter, "quant_state") else {}
        for value in (parameter.detach(), *scales.values()):
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if frozen else ""


def arrays_digest(arrays: Iterable[Any]) -> str:
    """SHA-256 over numpy arrays in order, lengths included: of examples, say whether they are the same examples."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that are trained by name; tied ones once."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def _state(model: nn.Module) -> dict[str, Tensor]:
    """This rank's part of trained weights and persistent buffers, detached and not copied."""
    persistent = model.state_dict().keys()
    buffers = {name: each for name, each in model.named_buffers() if name in persistent}
    return {name: part_of(each) for name, each in (_trained(model) | buffers).items()}


@torch.no_grad()
def _copy(saved: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Checks that both have the same tensors, then copies all values."""
    for name in [*saved.keys() - live.keys(), *live.keys() - saved.keys()]:
        has, lacks = ("checkpoint", "model") if name in saved else ("model", "checkpoint")
        raise _differs(name, f"the {has} has it, the {lacks} has not", "the same tensors in both")
    for name, value in saved.items():
        if value.shape != live[name].shape or value.dtype != live[name].dtype:
            got, expected = (f"{each.dtype} {list(each.shape)}" for each in (value, live[name]))
            raise _differs(name, got, expected)
    for name, value in saved.items():
        live[name].copy_(value)


def _differs(name: str, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint tensor {name}",
        got=got,
        expected=expected,
        hint="the checkpoint belongs to another model: give the --model and --lora settings it was made with",
    )


def _accelerators(model: nn.Module) -> list[torch.device]:
    return sorted({each.device for each in model.parameters() if each.device.type != "cpu"}, key=str)


def _python_generator() -> Tensor:
    """The state of Python's generator: 624 words and a position."""
    return torch.tensor(random.getstate()[1], dtype=torch.int64)


def _set_python_generator(words: Tensor) -> None:
    random.setstate((3, tuple(words.tolist()), None))
