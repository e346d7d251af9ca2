"""What the caches of a cluster keep on disk: whether it is still what it was, and how it is made to fit.

casd names each object by the digest of its bytes and believes that ever after: a worker would run a test on files that
a crash or a bad disk has changed. So somebody has to look, and that is done here.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


def objects(store: Path) -> Iterator[Path]:
    """Every object that casd keeps: a file named by the digest of its bytes, below a folder of its first two digits."""
    for folder in sorted((store / "cas/objects").glob("[0-9a-f][0-9a-f]")):
        yield from sorted(path for path in folder.iterdir() if path.is_file())


def damaged(file: Path) -> bool:
    """Whether an object is not what its name says."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() != file.parent.name + file.name.partition(".")[0]


@dataclass
class Checked:
    """What a look at every object has found."""

    num_objects: int = 0
    num_bytes: int = 0
    damaged: list[Path] = field(default_factory=list)


def check(store: Path, *, remove: bool, since: float = 0) -> Checked:
    """Compares objects with their digests.

    Args:
        store: of casd.
        remove: what is damaged; whoever asks for it again has it made again.
        since: leaves out what nobody has written, or used, after this time.
    """
    found = Checked()
    for file in objects(store):
        try:
            told = file.stat()
            if told.st_ctime < since:
                continue
            wrong = damaged(file)
            if wrong and remove:
                file.unlink()
        except FileNotFoundError:
            continue  # Dropped for room in the meantime.
        found.num_objects += 1
        found.num_bytes += told.st_size
        if wrong:
            found.damaged.append(file)
    return found


def make_room(store: Path, bytes_max: int) -> None:
    """Removes objects that were asked for least lately from a cache by HTTP, until a quarter of its room is free.

    Nothing does so while it runs: nginx removes nothing.
    """
    files = [file for kind in ("ac", "cas") for file in (store / kind).glob("*")]
    found = sorted(
        ((max(told.st_atime, told.st_mtime), told.st_size, file) for file in files if (told := file.stat())),
        reverse=True,
    )
    kept = 0
    if sum(size for _, size, _ in found) <= bytes_max:
        return
    for _, size, file in found:
        kept += size
        if kept > bytes_max * 0.75:
            file.unlink()
