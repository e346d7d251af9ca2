"""A git repository for a test."""

import subprocess
from pathlib import Path


def git(folder: Path, *words: str) -> None:
    """Runs git in a folder, as somebody."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)
