"""Packs the working tree, less what git ignores, into a deterministic archive.

Usage: archive.py ROOT ARCHIVE FOLDER...
"""

import pathlib
import subprocess
import sys
import tarfile

IGNORED_FOLDERS = {"__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def files_by_walk(root: pathlib.Path, folders: list[str]) -> list[str]:
    """Top-level files and everything below the folders: for a tree that is no git checkout."""
    found = [path for path in root.iterdir() if path.is_file() and not path.name.startswith("bazel-")]
    found += [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    relative = [path.relative_to(root) for path in found]
    return [str(path) for path in relative if not IGNORED_FOLDERS & set(path.parts)]


def files_by_git(root: pathlib.Path) -> list[str] | None:
    """What git tracks or would track, or None where git has no answer."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return [name for name in listing.split("\0") if name and (root / name).is_file()]


def pack(root: pathlib.Path, archive: pathlib.Path, folders: list[str]) -> None:
    """Writes the archive; equal trees give equal bytes."""
    names = files_by_git(root)
    wanted = sorted(
        name
        for name in (files_by_walk(root, folders) if names is None else names)
        if "/" not in name or name.split("/", 1)[0] in folders
    )
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in wanted:
            member = tarfile.TarInfo(name)
            content = root / name
            member.size, member.mode = content.stat().st_size, 0o755 if content.stat().st_mode & 0o100 else 0o644
            with content.open("rb") as file:
                tar.addfile(member, file)


if __name__ == "__main__":
    pack(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:])
