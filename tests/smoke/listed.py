"""What is checked in of the matrix, read without making it anew, which takes a library that only this needs.

Paths are from the root, where tests are run.
"""

from pathlib import Path
from typing import Any

from tests.smoke.matrix import Cell, cell_named
from tools.bazel.starlark import starlark

BZL = "tests/smoke/cells.bzl"
ACCELERATORS = "tools/bazel/accelerators.bzl"


def names_of(path: str) -> dict[str, Any]:
    """The global names of a .bzl file that holds tables."""
    return starlark(Path(path).read_text(encoding="utf-8"))


def listed(accelerator: str) -> dict[Cell, str]:
    """The depth of each allowed cell of an accelerator, by its word in Bazel's table."""
    suffix = "" if accelerator == "cpu" else f".{accelerator}"
    return {
        cell_named(stem + suffix): depth
        for accelerators, depth, stems in names_of(BZL)["CELLS"]
        if accelerator in accelerators
        for stem in stems.split()
    }
