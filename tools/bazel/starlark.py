"""Tables and macros of .bzl files, read by Python: Starlark nearly is that."""

import types
from typing import Any


def starlark(text: str, **names: Any) -> dict[str, Any]:
    """The global names of a file with that text.

    Args:
        text: of a file of tables; one that does more needs what it calls.
        names: what Bazel, or the file's load statements, would bring beside `struct`.
    """
    scope: dict[str, Any] = {"struct": types.SimpleNamespace, **names}
    exec(compile(text, "a .bzl file", "exec"), scope)
    return scope
