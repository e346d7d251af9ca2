"""Ruff and mypy, run as modules of this interpreter on a tree."""

import os
import subprocess
import sys
from pathlib import Path

#: One call each: what the settings in pyproject.toml cannot say.
RUFF_CHECK = ("check", "--no-cache", "--output-format=concise", ".")
RUFF_FORMAT = ("format", "--no-cache", "--check", "--output-format=concise", ".")


def run_checker(module: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished run of `python -m module arguments` in a folder, its two outputs together in stdout.

    The child sees the same wheels as this process: Bazel's launchers put them on sys.path in more than one way.
    """
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def mypy_arguments(cache: Path) -> tuple[str, ...]:
    """What to give mypy: training/, strict by pyproject.toml, then the tools and what tests share."""
    return ("--cache-dir", str(cache), "--no-error-summary", "training", "tools", "tests/support")


def expect_clean(finished: subprocess.CompletedProcess[str]) -> None:
    """Fails the test with what the checker said.

    Raises:
        AssertionError: the checker found something, or could not run.
    """
    if finished.returncode != 0:
        hint = "hint: ./bazelw run //tools/lint:fix repairs what can be repaired"
        raise AssertionError(f"\n{finished.stdout}\n{' '.join(finished.args[3:])}: exit {finished.returncode}. {hint}")
