"""What makes a directory a checkpoint: a manifest that lists every file with its size and SHA-256.

    checkpoints/
      step-00000010/          committed: the directory has its final name, and its manifest was on disk before that
        manifest.json         {"schema": 1, "step": 10, "validation_loss": 2.1, "files": {name: {"bytes": …, "sha256":
                              …}}, "sha256": …}; the loss is null if none was computed after that step
        state.json  parameters.safetensors  moments.safetensors  random.safetensors
                        of several ranks, what each of them writes: random-00001-of-00002.safetensors, …
      step-00000020/
      latest                  the name of the newest one that was committed
      .unfinished-… .trash-…  what a killed save or rotation left; never read, removed by the next save

A directory gets its final name by one rename, after everything in it has been flushed: that rename is the commit.
`latest` follows it and has one use: nothing older than what it names is ever believed to be the newest, so a checkpoint
that vanished is noticed and training never goes back in silence.

Standard library only.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.errors import CheckpointCorrupt, CheckpointMissing

SCHEMA = 1
MANIFEST = "manifest.json"
POINTER = "latest"
UNFINISHED = ".unfinished-"
TRASH = ".trash-"
_NAME = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    """Directory name of the checkpoint after `step` steps; sorts as the steps do."""
    return f"step-{step:08d}"


def file_of_rank(name: str, rank: int, num_ranks: int) -> str:
    """Name, without its ending, of the file that each rank writes for itself; of a single process, the plain name."""
    return f"{name}-{rank + 1:05d}-of-{num_ranks:05d}" if num_ranks > 1 else name


@dataclass(frozen=True)
class FileEntry:
    """What a file must be to be the one that was saved."""

    bytes: int
    sha256: str


def entry_of(path: Path) -> FileEntry:
    """Size and hash of a file as it is on disk now."""
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def manifest_text(step: int, files: Mapping[str, FileEntry], validation_loss: float | None = None) -> str:
    """The manifest as it is written, with a hash of itself, so that damage to it is seen as well."""
    listed = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in sorted(files.items())}
    body = {"schema": SCHEMA, "step": step, "validation_loss": validation_loss, "files": listed}
    return json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n"


def verified(checkpoint: Path) -> dict[str, Path]:
    """The files of a committed checkpoint by name, every byte of them read and compared with the manifest.

    Raises:
        CheckpointCorrupt: the manifest or a file is absent, of another size, or of another content; names which.
    """
    manifest = checkpoint / MANIFEST
    try:
        body = json.loads(manifest.read_text(encoding="utf-8"))
        expected = body.pop("sha256")
    except FileNotFoundError:
        raise corrupt(manifest, "the file is not there", "a manifest") from None
    except (ValueError, KeyError, AttributeError):
        raise corrupt(manifest, "the file is not the JSON that was written", "a manifest") from None
    if _digest(body) != expected or body["schema"] != SCHEMA or name_of(body["step"]) != checkpoint.name:
        raise corrupt(manifest, "its content does not match its own hash", f"the manifest of {checkpoint.name}")
    for name, listed in body["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise corrupt(path, "the file is not there", f"{listed['bytes']} bytes")
        if path.stat().st_size != listed["bytes"]:
            raise corrupt(path, f"{path.stat().st_size} bytes", f"{listed['bytes']} bytes")
        if entry_of(path).sha256 != listed["sha256"]:
            raise corrupt(path, "its content has another SHA-256", f"{listed['sha256'][:16]}…")
    return {name: checkpoint / name for name in body["files"]}


def committed(checkpoints: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first; empty if there is no such directory."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def best(checkpoints: Path, num: int) -> list[Path]:
    """The `num` committed checkpoints with the lowest validation loss, best first; of equals the older one."""
    losses: dict[Path, float] = {}
    for each in committed(checkpoints):
        try:
            loss = json.loads((each / MANIFEST).read_text(encoding="utf-8"))["validation_loss"]
        except (OSError, ValueError, KeyError, TypeError):
            # Damaged, so not one to come back to.
            continue
        if isinstance(loss, float):
            losses[each] = loss
    return sorted(losses, key=lambda path: losses[path])[:num]


def newest(checkpoints: Path) -> Path | None:
    """The checkpoint to go on from, or None if none was ever committed.

    Raises:
        CheckpointCorrupt: the pointer does not hold a name.
        CheckpointMissing: the pointer names a checkpoint that is not there.
    """
    present = committed(checkpoints)
    pointer = checkpoints / POINTER
    if pointer.is_file():
        named = pointer.read_bytes().decode("utf-8", "replace").removesuffix("\n")
        if not _NAME.fullmatch(named):
            raise corrupt(pointer, f"it says {named[:40]!r}", "the name of a checkpoint, like step-00000010")
        if checkpoints / named not in present:
            others = f"from {present[-1].name}" if present else "from the beginning"
            raise CheckpointMissing(
                str(checkpoints / named),
                got="the newest checkpoint is not there",
                expected=f"a directory, since {pointer} names it",
                hint=f"put it back, or remove {pointer} to go on {others}",
            )
    # Newer than the pointer is possible and good: the process died between the commit and the pointer.
    return present[-1] if present else None


def corrupt(path: Path, got: str, expected: str) -> CheckpointCorrupt:
    """The error for a file that is not what was saved, with the way back to an older checkpoint if there is one."""
    is_pointer = path.name == POINTER
    checkpoints = path.parent if is_pointer else path.parent.parent
    damaged = path if is_pointer else path.parent
    older = [each.name for each in committed(checkpoints) if each != damaged]
    way_back = f"remove {damaged}" + ("" if is_pointer else f" and {checkpoints / POINTER}")
    then = f"to go on from {older[-1]}" if older else "to start from the beginning"
    return CheckpointCorrupt(
        str(path), got=got, expected=expected, hint=f"restore the file from a copy, or {way_back} {then}"
    )


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
