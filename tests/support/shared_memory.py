"""Shared memory of ours: /dev/shm belongs to all that runs on the machine, other tests too."""

import os
from collections.abc import Sequence
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

NAMES_OF_OURS = ("torch_", "nccl-", "sem.mp-", "psm_", "cuda.shm.", "deepspeed")
"""How shared memory begins that Python, torch, NCCL and DeepSpeed make. Other programs have theirs beside it."""


def shared_memory(beginnings: Sequence[str] = NAMES_OF_OURS) -> set[str]:
    """The names that are there now and begin so."""
    return {name for name in os.listdir(SHARED_MEMORY) if name.startswith(tuple(beginnings))}
