"""Imports of heavy packages without what they drag along and nobody here uses."""

import importlib
from typing import Any

import torch


def import_lean(name: str) -> None:
    """Imports a module, and leaves as they are written the functions that are to be compiled as it is imported.

    bitsandbytes asks for that, and peft imports it where it is installed. What it has compiled stands in for kernels of
    devices that have none, and those that are trained on have them; but to ask imports all of torch's compiler, two
    seconds of every start with an adapter, a quantized model or moments in 8 bits.

    Args:
        name: of the module. One that is there already is left as it is.
    """
    compiled: Any = torch.compile
    torch.compile = _as_written  # type: ignore[assignment]  # another signature, and put back below
    try:
        importlib.import_module(name)
    finally:
        torch.compile = compiled


def _as_written(function: Any = None, **_: object) -> Any:
    """Stands in for torch.compile, as a function and as a decorator with arguments."""
    return function if function is not None else _as_written
