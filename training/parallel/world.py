"""Which process this is among how many, and the process group that joins them.

A launcher (torchrun, or anything that sets the same variables, on one machine or several) says it in the environment:

    RANK  WORLD_SIZE                this process, from 0, of how many
    LOCAL_RANK  LOCAL_WORLD_SIZE    the same on this machine; absent means that there is one machine
    MASTER_ADDR  MASTER_PORT        where the ranks find each other

`training.parallel.launch` hands over the same facts without the environment.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from training.errors import ConfigError

GROUP_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""By device type. Numbers and objects that ranks tell each other stay on the CPU, hence gloo everywhere."""


@dataclass(frozen=True)
class World:
    """This process among all that train together."""

    rank: int
    num_ranks: int
    rank_here: int
    """Among those on this machine, from 0; also the number of its accelerator."""
    num_ranks_here: int
    address: str = ""
    port: int = 0
    store_path: str | None = None
    """File through which ranks on one machine find each other, instead of an address: no port, no name to resolve."""


def started_by_launcher(environment: Mapping[str, str] = os.environ) -> World | None:
    """What the launcher's variables say, or None if there are none.

    Raises:
        ConfigError: some are there and others are not, or one is no number.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return None
    rank, num_ranks = _number("RANK", environment), _number("WORLD_SIZE", environment)
    rank_here = _number("LOCAL_RANK", environment, default=rank)
    num_ranks_here = _number("LOCAL_WORLD_SIZE", environment, default=num_ranks)
    if not (rank < num_ranks and rank_here < num_ranks_here <= num_ranks):
        raise ConfigError(
            "RANK, LOCAL_RANK",
            got=f"rank {rank} of {num_ranks}, {rank_here} of {num_ranks_here} on this machine",
            expected="ranks below their counts",
            hint="let torchrun set these variables",
        )
    address = environment.get("MASTER_ADDR", "")
    if not address:
        raise _unusable("MASTER_ADDR", "it is not set, while RANK is", "the host of rank 0")
    return World(rank, num_ranks, rank_here, num_ranks_here, address, _number("MASTER_PORT", environment))


def _number(name: str, environment: Mapping[str, str], default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        got = "it is not set, while RANK or WORLD_SIZE is" if text is None else repr(text)
        raise _unusable(name, got, "a number, 0 or more")
    return int(text)


def _unusable(name: str, got: str, expected: str) -> ConfigError:
    hint = "start the ranks with torchrun, or unset RANK and WORLD_SIZE and give --ranks"
    return ConfigError(f"environment variable {name}", got=got, expected=expected, hint=hint)


@contextmanager
def joined(world: World, device_type: str, *, seconds_max: int) -> Iterator[torch.device]:
    """The process group while it is entered; yields this rank's device.

    After an error the group is left to the death of the process: closing it would wait for ranks that wait for us.

    Args:
        world: this process.
        device_type: cpu, or an accelerator, of which this rank takes the one with its number.
        seconds_max: a rank that waits longer for the others gives up with an error.
    """
    device = torch.device("cpu")
    if device_type != "cpu":
        device = torch.device(device_type, world.rank_here)
        torch.get_device_module(device).set_device(device)
    if world.num_ranks_here == world.num_ranks:
        _stay_on_loopback()
    timeout = timedelta(seconds=seconds_max)
    store = distributed.FileStore(world.store_path, world.num_ranks) if world.store_path else None
    distributed.init_process_group(
        GROUP_BACKENDS[device_type],
        store=store,
        init_method=None if store else "env://",
        rank=world.rank,
        world_size=world.num_ranks,
        timeout=timeout,
    )
    yield device
    distributed.barrier()
    distributed.destroy_process_group()


def _stay_on_loopback() -> None:
    """Has gloo use the loopback interface: ranks on one machine need no network, and may not have one."""
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
