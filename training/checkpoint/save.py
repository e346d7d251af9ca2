"""Writes a checkpoint so that a process killed at any moment leaves either the old newest one or the new one.

    clear leftovers → write each file, flush it, read it back for its hash → manifest → next pointer
                    → rename the directory: the commit → rename the pointer → rotate

Every arrow is a boundary, and `on_boundary` is told of each before it is crossed, with a name that says what comes
next. Tests kill the process at every one of them; nothing else needs it.

Of several ranks each writes its own files; rank 0 does the rest, and goes on only when all have got so far.

After the commit nothing is written any more, so a disk that is full fails a save before it or not at all.

Old checkpoints go last and in one rename each, so a half-deleted one never looks like a whole one.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from training.checkpoint.manifest import (
    MANIFEST,
    POINTER,
    TRASH,
    UNFINISHED,
    FileEntry,
    best,
    committed,
    entry_of,
    manifest_text,
    name_of,
)
from training.errors import CheckpointError
from training.parallel.backend import Alone, Ranks

STATE = "state.json"
ALONE = Alone()
T = TypeVar("T")


def save(
    checkpoints: Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    num_kept: int,
    num_best_kept: int = 0,
    validation_loss: float | None = None,
    ranks: Ranks = ALONE,
    on_boundary: Callable[[str], None] = lambda name: None,
) -> Path:
    """Commits the checkpoint of `step` and returns its directory. All ranks call it.

    Args:
        checkpoints: the run's directory of checkpoints, made if absent; all ranks see the same.
        step: optimizer steps taken.
        tensors: for each file that this rank writes, without its ending, the tensors in it. They are written from where
            they are, uncopied.
        state: JSON values, written to state.json by rank 0.
        num_kept: newest checkpoints to keep, this one included.
        num_best_kept: checkpoints to keep for their validation loss, beside the newest.
        validation_loss: after this step, if it was computed; written to the manifest.
        ranks: who takes part. Rank 0 makes the directory and commits it once every rank has flushed its files.
        on_boundary: told the name of each boundary before it is crossed.

    Raises:
        CheckpointError: some rank cannot write the directory, or it is there; earlier checkpoints are as they were. All
            ranks raise.
    """
    final = checkpoints / name_of(step)
    unfinished = checkpoints / f"{UNFINISHED}{final.name}"
    next_pointer = checkpoints / f"{UNFINISHED}{POINTER}"

    def begin() -> None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        # Not left to the rename that commits: there are file systems that let it replace a directory with files in it.
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        on_boundary("clear leftovers")
        clear_leftovers(checkpoints)
        on_boundary("make directory")
        unfinished.mkdir()

    def write_files() -> dict[str, FileEntry]:
        files = {}
        for name, values in tensors.items():
            path = unfinished / f"{name}.safetensors"
            on_boundary(f"write {path.name}")
            save_file(dict(values), path)
            on_boundary(f"flush {path.name}")
            _flush(path)
            files[path.name] = entry_of(path)
        return files

    def commit(files: dict[str, FileEntry]) -> None:
        on_boundary(f"write {STATE}")
        _write(unfinished / STATE, json.dumps(state, indent=1) + "\n", on_boundary)
        files[STATE] = entry_of(unfinished / STATE)
        on_boundary("write manifest")
        _write(unfinished / MANIFEST, manifest_text(step, files, validation_loss), on_boundary)
        _flush(unfinished)
        on_boundary("write pointer")
        _write(next_pointer, f"{final.name}\n", on_boundary)
        on_boundary("commit")
        unfinished.rename(final)
        on_boundary("flush commit")
        _flush(checkpoints)
        on_boundary("move pointer")
        next_pointer.rename(checkpoints / POINTER)
        on_boundary("flush pointer")
        _flush(checkpoints)
        worth_keeping = best(checkpoints, num_best_kept)
        for old in committed(checkpoints)[:-num_kept]:
            if old in worth_keeping:
                continue
            on_boundary(f"rotate {old.name}")
            trash = old.rename(checkpoints / f"{TRASH}{old.name}")
            on_boundary(f"delete {old.name}")
            shutil.rmtree(trash)

    is_first = ranks.rank == 0
    try:
        _together(ranks, begin if is_first else lambda: None)
        files = {name: entry for each in _together(ranks, write_files) for name, entry in each.items()}
        _together(ranks, (lambda: commit(files)) if is_first else lambda: None)
    except (OSError, SafetensorError) as error:
        if is_first:
            # Space is what a failed save most often lacks, and half-written files are the first to give some back.
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):
                next_pointer.unlink()
        raise CheckpointError(
            str(final),
            got=f"it cannot be written ({error})",
            expected="a directory with room for the weights and two moments of each",
            hint="make room or choose another --out; the checkpoints before this one are untouched",
        ) from error
    return final


def _together(ranks: Ranks, phase: Callable[[], T]) -> list[T]:
    """What a phase returns on each rank; waits for all. If it fails on one, all raise, so that none waits for ever."""
    answer: T | None = None
    problem: OSError | SafetensorError | None = None
    try:
        answer = phase()
    except (OSError, SafetensorError) as error:
        problem = error
    outcomes = ranks.gather((answer, problem and str(problem)))
    if problem is not None:
        raise problem
    for rank, (_, said) in enumerate(outcomes):
        if said is not None:
            raise OSError(f"on rank {rank}: {said}")
    return [cast(T, each) for each, _ in outcomes]


def clear_leftovers(checkpoints: Path) -> None:
    """Removes what a killed save or rotation left behind. Only the one process that owns the run may call it."""
    for path in checkpoints.iterdir():
        if path.name.startswith((UNFINISHED, TRASH)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write(path: Path, text: str, on_boundary: Callable[[str], None]) -> None:
    """Writes a small file in two halves with a boundary between, as a torn write would leave it, and flushes it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        on_boundary(f"tear {path.name}")
        file.write(text[len(text) // 2 :])
        file.flush()
        on_boundary(f"flush {path.name}")
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    """Waits until a file's content, or a directory's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
