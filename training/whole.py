"""Files that are there whole or not at all, whatever is killed meanwhile. Standard library only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place once it is on disk, and not if anything fails."""
    beside = path.with_name(f"{path.name}.tmp")
    yield beside
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in one piece."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")
