"""The documentation of the running interpreter's standard library, as plain documents: a corpus that is always there.

Sources are parsed and never imported, since an import may open windows or sockets, or print. Standard library only.
"""

import ast
import random
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from training.errors import DataError

LEFT_OUT = {"__pycache__", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
"""Folders that hold tests, data or other people's packages."""

NUM_CHARACTERS_MIN = 40
"""A shorter docstring repeats the name that it stands under."""

NUM_DOCUMENTS_MIN = 200


def read_modules(root: Path | None = None) -> dict[str, list[str]]:
    """The docstrings of each module below a folder, by its path; each docstring once. Modules without any are left out.

    Args:
        root: folder of Python sources; that of this interpreter's standard library if None.

    Raises:
        DataError: too little is there to learn from.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    modules: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        where = path.relative_to(root)
        if LEFT_OUT.isdisjoint(where.parts) and (found := [doc for doc in _docstrings(path) if doc not in seen]):
            modules[where.as_posix()] = list(dict.fromkeys(found))
            seen.update(found)
    if len(seen) < NUM_DOCUMENTS_MIN:
        raise DataError(
            str(root),
            got=f"{len(seen)} docstrings in {len(modules)} modules",
            expected=f"at least {NUM_DOCUMENTS_MIN}, as any whole Python has",
            hint="use a Python whose library is there as .py files; some minimal packages leave most of it out",
        )
    return modules


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in order; none of a file that does not parse."""
    try:
        with warnings.catch_warnings():
            # Old code in the library has escapes that newer Pythons warn of.
            warnings.simplefilter("ignore")
            syntax = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    # Statements alone, of which there are far fewer than of what ast.walk goes through.
    left = deque[ast.AST]([syntax])
    while left:
        node = left.popleft()
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            left.extend(getattr(node, field, ()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = (ast.get_docstring(node) or "").strip()
            if len(text) >= NUM_CHARACTERS_MIN:
                yield text


def split(
    modules: dict[str, list[str]], *, seed: int, num_training_max: int, num_held_out_min: int
) -> tuple[list[str], list[str]]:
    """Documents to train on and documents held out. Whole modules go to one side, since their texts resemble.

    Args:
        modules: from `read_modules`.
        seed: of the shuffle.
        num_training_max: characters to train on, about.
        num_held_out_min: characters to hold out, at least.
    """
    names = sorted(modules)
    random.Random(seed).shuffle(names)
    held_out: list[str] = []
    while names and sum(map(len, held_out)) < num_held_out_min:
        held_out += modules[names.pop()]
    training: list[str] = []
    while names and sum(map(len, training)) < num_training_max:
        training += modules[names.pop()]
    return training, held_out
