"""Finds the checkpoint to go on from, verifies it, and refuses to go on with anything but the same run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoint.manifest import file_of_rank, newest, verified
from training.checkpoint.save import STATE
from training.checkpoint.state import BESIDE_MOMENTS, Made
from training.config import Resume
from training.errors import CheckpointError, CheckpointMissing


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory, each byte of it verified."""

    path: Path
    step: int
    """Optimizer steps taken when it was saved."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    is_whole: bool = False
    """True if it is joined from another number of ranks or another backend: what belongs to ranks is not in it."""


@dataclass(frozen=True)
class Place:
    """Which rank asks, and among whom: what decides how tensors are spread over files."""

    backend: str = "single"
    zero_stage: int | None = None
    rank: int = 0
    num_ranks: int = 1
    num_shards: int = 1
    """Ranks that hold a copy of the weights between them."""


SINGLE = Place()

JOINED = ("parameters", "moments")
"""Files whose content is the run's; `random` is each rank's own."""

OF_THE_PLACE = {
    f"plan.{name}" for name in ("backend", "zero_stage", "num_ranks", "shard_ranks", "offload", "device", "num_threads")
}
"""What an elastic run may change: all of it changes rounding and nothing else."""


def find(checkpoints: Path, resume: Resume) -> Path | None:
    """The checkpoint to go on from; None to start from the beginning.

    Raises:
        CheckpointMissing: `must` and there is none, or the newest one has vanished.
        CheckpointCorrupt: the pointer is damaged.
        CheckpointError: `never` and there is one.
    """
    found = newest(checkpoints)
    if found is None and resume == "must":
        raise CheckpointMissing(
            str(checkpoints),
            got="no checkpoint",
            expected="one to go on from",
            hint="check --out, or start from the beginning with --resume auto",
        )
    if found is not None and resume == "never":
        raise CheckpointError(
            str(checkpoints),
            got=f"there are checkpoints up to {found.name}",
            expected="none, with --resume never",
            hint="choose another --out, or go on with --resume auto",
        )
    return found


def load(checkpoint: Path, place: Place = SINGLE, *, elastic: bool = False) -> Saved:
    """The content of a checkpoint as far as this rank needs it; nothing is believed before all of it is verified.

    A file of another rank is left to that one. Of a checkpoint that was saved at another place, an elastic run reads
    every rank's files and joins them; for another run it is what `check_same` will refuse.

    Args:
        checkpoint: a committed one.
        place: this rank and the ranks it is among.
        elastic: whether another place will do.

    Raises:
        CheckpointCorrupt: a file is absent or is not what was saved; names the file.
    """
    files = verified(checkpoint)
    state = json.loads(files.pop(STATE).read_text(encoding="utf-8"))
    step = int(checkpoint.name.removeprefix("step-"))
    before = state["identity"]["plan"] | {"num_shards": state["num_shards"]} if elastic else {}
    layout = ("backend", "zero_stage", "num_ranks", "num_shards")
    if elastic and any(before[name] != getattr(place, name) for name in layout):
        joined = {name: _joined(files, name, state) for name in JOINED}
        return Saved(checkpoint, step, joined, state, is_whole=True)
    tensors = {}
    shard = (place.rank % place.num_shards, place.num_shards)
    for name, number in {"parameters": shard, "moments": shard, "random": (place.rank, place.num_ranks)}.items():
        for file in (name, file_of_rank(name, *number)):
            if path := files.get(f"{file}.safetensors"):
                tensors[name] = load_file(path)
    return Saved(checkpoint, step, tensors, state)


def _joined(files: Mapping[str, Path], name: str, state: Mapping[str, Any]) -> Made:
    """The tensors of all ranks as those of one: parts end to end, what each rank has in full once.

    Joined one by one, as they are asked for: a model that is trained in parts may have no room for all of it.
    """
    num_shards = state["num_shards"]
    shapes = state["identity"]["trained weights"]
    names = [file_of_rank(name, shard, num_shards) for shard in range(num_shards)] if num_shards > 1 else [name]
    parts = [load_file(files[f"{each}.safetensors"]) for each in names]

    def join(tensor: str) -> Tensor:
        weight, _, key = tensor.rpartition("/") if name == "moments" else (tensor, "", "")
        first = parts[0][tensor]
        if not first.ndim or tensor in state["replicated"] or key.startswith(BESIDE_MOMENTS):
            return first
        return torch.cat([part[tensor] for part in parts]).reshape(shapes[weight])

    return Made(parts[0], join)


def check_same(saved: Saved, identity: Mapping[str, Any], *, elastic: bool = False) -> None:
    """Compares what decides the numbers of a run, setting by setting, and refuses the first that differs.

    Args:
        saved: the checkpoint; its state holds an `identity`.
        identity: the same of this process: the plan's trajectory, and digests of data and frozen weights.
        elastic: whether the place may differ.

    Raises:
        CheckpointError: names the setting and both values.
    """
    before = _flat(saved.state["identity"])
    now = _flat(identity)
    for name in sorted((before.keys() | now.keys()) - (OF_THE_PLACE if elastic else set())):
        if before.get(name) != now.get(name):
            other = (
                "go on to rounding with --elastic true" if name in OF_THE_PLACE else "start a new run in another --out"
            )
            raise CheckpointError(
                f"{saved.path} ({name})",
                got=f"{now.get(name)} now, {before.get(name)} when it was saved",
                expected="the same run, so that going on is exact",
                hint=f"give the setting its old value back, or {other}",
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in the names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
