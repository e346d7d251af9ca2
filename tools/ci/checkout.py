"""Which commit a checkout is at, and whether its files are that commit's."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Commit:
    """A commit; `changed` if files differ from it."""

    id: str
    subject: str
    date: str
    """The day it was committed, as 2026-11-25."""
    changed: bool

    @property
    def name(self) -> str:
        """Short, with a + where files differ from it."""
        return self.id[:10] + ("+" if self.changed else "")


def commit_of(workspace: Path, ignoring: tuple[str, ...] = ()) -> Commit | None:
    """The commit that a checkout is at; None where there is no git or no commit.

    Args:
        workspace: its root.
        ignoring: paths whose changes do not count.
    """
    told = _git(workspace, "log", "-1", "--format=%H%n%cs%n%s")
    status = _git(workspace, "status", "--porcelain", "--", ".", *(f":!{path}" for path in ignoring))
    if told is None or status is None:
        return None
    commit, date, subject = told.split("\n", 2)
    return Commit(commit, subject, date, bool(status))


def _git(workspace: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(workspace), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
