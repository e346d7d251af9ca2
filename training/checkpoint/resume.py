"""Finds the checkpoint to go on from, verifies it, and refuses to go on with anything but the same run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from training.checkpoint.manifest import file_of_rank, newest, verified
from training.checkpoint.save import STATE
from training.checkpoint.state import Tensors
from training.config import Resume
from training.errors import CheckpointError, CheckpointMissing


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory, each byte of it verified."""

    path: Path
    step: int
    """Optimizer steps taken when it was saved."""
    tensors: Tensors
    state: Mapping[str, Any]


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


def load(checkpoint: Path, rank: int = 0, num_ranks: int = 1) -> Saved:
    """The content of a checkpoint as far as this rank needs it; nothing is believed before all of it is verified.

    A file of another rank is left to that one. A checkpoint of another number of ranks has none of this rank's, which
    `check_same` will refuse.

    Raises:
        CheckpointCorrupt: a file is absent or is not what was saved; names the file.
    """
    files = verified(checkpoint)
    state = json.loads(files.pop(STATE).read_text(encoding="utf-8"))
    tensors = {}
    for name in ("parameters", "moments", "random"):
        for file in (name, file_of_rank(name, rank, num_ranks)):
            if path := files.get(f"{file}.safetensors"):
                tensors[name] = load_file(path)
    return Saved(checkpoint, int(checkpoint.name.removeprefix("step-")), tensors, state)


def check_same(saved: Saved, identity: Mapping[str, Any]) -> None:
    """Compares what decides the numbers of a run, setting by setting, and refuses the first that differs.

    Args:
        saved: the checkpoint; its state holds an `identity`.
        identity: the same of this process: the plan's trajectory, and digests of data and frozen weights.

    Raises:
        CheckpointError: names the setting and both values.
    """
    before = _flat(saved.state["identity"])
    now = _flat(identity)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{saved.path} ({name})",
                got=f"{now.get(name)} now, {before.get(name)} when it was saved",
                expected="the same run, so that going on is exact",
                hint="give the setting its old value back, or start a new run in another --out",
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dots in the names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
