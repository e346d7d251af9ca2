"""What the matrix is written out as: tests/smoke/cells.bzl for Bazel, and matrix.json for whoever reports on it.

    ./bazelw run //tests/smoke:generate      writes cells.bzl anew
    ./bazelw build //tests/smoke:matrix      makes bazel-bin/tests/smoke/matrix.json

matrix.json holds every cell, with the plan's reason where it is refused:

    {"schema": 1, "cells": [{"name": "sft_lora_fsdp_x2", "recipe": "sft", "variant": "cpu", "framework": "fsdp",
      "cards": 2, "features": ["lora"], "depth": "blocking" | "full" | null, "target": "//tests/smoke:…" | null,
      "claims": ["ends_well", …] that its verdict must have, none where it is refused,
      "refusal": null | {"field": …, "got": …, "expected": …, "hint": …}}, …]}
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.smoke.covering import depths
from tests.smoke.listed import BZL
from tests.smoke.matrix import Cell, Matrix

SCHEMA = 1
REFRESH = "./bazelw run //tests/smoke:generate"

HEAD = f'''"""The allowed cells of the smoke matrix, by accelerators and depth. Written by `{REFRESH}`."""

# Accelerators for which the same cells are allowed, how deep one must test to meet them, and their names.
CELLS = [
'''


def bzl(cells: Mapping[Cell, str]) -> str:
    """The text of cells.bzl, given the depth of each allowed cell."""
    names: dict[tuple[str, str], list[str]] = {}
    for cell, depth in cells.items():
        names.setdefault((cell.accelerator, depth), []).append(cell.stem)
    # Accelerators that allow the same share their names, which are most of the file.
    sharing: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (accelerator, depth), those in names.items():
        sharing.setdefault((depth, tuple(those)), []).append(accelerator)
    text = HEAD
    for (depth, those), accelerators in sharing.items():
        listed = ", ".join(f'"{each}"' for each in sorted(accelerators))
        text += f'    ([{listed}], "{depth}", """\n' + "\n".join(those) + '\n"""),\n'
    return text + "]\n"


def as_json(matrix: Matrix) -> dict[str, Any]:
    """The content of matrix.json."""
    depth = depths(matrix)
    refused = matrix.refused
    everything = [*depth, *refused]
    rows = [
        {
            "name": cell.name,
            "recipe": cell.recipe,
            "variant": cell.variant,
            "framework": cell.framework,
            "cards": cell.cards,
            "features": list(cell.features),
            "depth": depth.get(cell),
            "target": cell.target if cell in depth else None,
            "claims": list(cell.claims) if cell in depth else [],
            "refusal": asdict(refused[cell]) if cell in refused else None,
        }
        for cell in everything
    ]
    return {"schema": SCHEMA, "cells": rows}


def main(arguments: list[str]) -> int:
    """Prints matrix.json if asked for `json`, else writes cells.bzl into the workspace that `bazel run` names."""
    matrix = Matrix()
    if arguments == ["json"]:
        head, _, tail = json.dumps(as_json(matrix)).partition("[")
        sys.stdout.write(head + "[\n" + tail.replace('}, {"name"', '},\n{"name"') + "\n")
        return 0
    path = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", ".")) / BZL
    cells = depths(matrix)
    path.write_text(bzl(cells), encoding="utf-8")
    print(f"{path}: {len(cells)} cells allowed, {len(matrix.refused)} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
