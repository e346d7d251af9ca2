"""What is checked in of the matrix, read without making it anew, which takes a library that only this needs.

Paths are from the root, where tests are run.
"""

import types
from typing import Any

from tests.smoke.matrix import Cell, cell_named

BZL = "tests/smoke/cells.bzl"
ACCELERATORS = "tools/bazel/accelerators.bzl"


def starlark(path: str) -> dict[str, Any]:
    """The global names of a .bzl file that holds tables."""
    scope: dict[str, Any] = {"struct": types.SimpleNamespace}
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), scope)
    return scope


def listed(accelerator: str) -> dict[Cell, str]:
    """The depth of each allowed cell of an accelerator, by its word in Bazel's table."""
    suffix = "" if accelerator == "cpu" else f".{accelerator}"
    return {
        cell_named(stem + suffix): depth
        for accelerators, depth, stems in starlark(BZL)["CELLS"]
        if accelerator in accelerators
        for stem in stems.split()
    }
