"""run.json: what was decided, and who took part in it and where, as each rank found it rather than as it was asked for.

    {"schema": 1, "plan": {…}, "first_step": 10, "ranks": [{"rank": 0, "num_ranks": 2, "device": "cpu", …}, …]}

Written by rank 0 before the first step of each session and once more after its last. A run that asked for four
accelerators and got one shows it here, whatever its losses look like.
"""

import json
import os
import platform
import resource
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from training.parallel.shards import part_of
from training.whole import write_whole

SCHEMA = 1


@dataclass(frozen=True)
class Presence:
    """One rank, in its own words."""

    rank: int
    """Its number in the process group; 0 without one."""
    num_ranks: int
    """Members of the process group; 1 without one."""
    group: str
    """How they talk: gloo, or gloo and nccl; empty without a group."""
    device: str
    device_name: str
    """What the hardware calls itself."""
    host: str
    process: int
    num_weights_held: int
    """Trained weights that this rank updates: all of them, or its part."""
    memory_peak_bytes: int
    """Most memory of the device that was in use at once; on a CPU, of this process."""


def present(device: torch.device, trained: Iterable[nn.Parameter]) -> Presence:
    """This process as it is now.

    Args:
        device: where it computes.
        trained: its weights, of which it may hold a part.
    """
    joined = distributed.is_initialized()
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    return Presence(
        rank=distributed.get_rank() if joined else 0,
        num_ranks=distributed.get_world_size() if joined else 1,
        group=str(distributed.get_backend_config()) if joined else "",
        device=str(device),
        device_name=accelerator.get_device_name(device) if accelerator else platform.machine(),
        host=socket.gethostname(),
        process=os.getpid(),
        num_weights_held=sum(part_of(each).numel() for each in trained if each.requires_grad),
        memory_peak_bytes=accelerator.max_memory_allocated(device)
        if accelerator
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def write_run(path: Path, *, plan: Mapping[str, Any], first_step: int, ranks: Sequence[Presence]) -> None:
    """Writes run.json in one piece."""
    content = {"schema": SCHEMA, "plan": plan, "first_step": first_step, "ranks": [asdict(each) for each in ranks]}
    write_whole(path, json.dumps(content, indent=1) + "\n")
