"""The backend of one process, and the look around that tells the plan where it is."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from training.config import Precision
from training.parallel.backend import Alone
from training.parallel.world import started_by_launcher
from training.plan import Machine

ACCELERATORS = ("cuda", "xpu")
"""Device types the toolkit is written for, best first. ROCm calls itself cuda."""


OPTIONAL_PACKAGES = ("bitsandbytes", "flash_attn", "liger_kernel", "triton")
"""What only some settings need."""


def machine() -> Machine:
    """This machine: its accelerators, the threads that this process may use rather than all there are, and the ranks.

    Raises:
        ConfigError: a launcher's environment variables cannot be understood.
    """
    present = tuple(kind for kind in ACCELERATORS if getattr(torch, kind).is_available())
    world = started_by_launcher()
    return Machine(
        num_threads=len(os.sched_getaffinity(0)),
        accelerators=present,
        num_accelerators=getattr(torch, present[0]).device_count() if present else 0,
        num_ranks=world.num_ranks if world else None,
        num_ranks_here=world.num_ranks_here if world else 1,
        packages=tuple(name for name in OPTIONAL_PACKAGES if importlib.util.find_spec(name)),
        compiles_c=_compiles("CC", "gcc", "clang"),
        compiles_cpp=_compiles("CXX", "g++"),
    )


def _compiles(variable: str, *usual: str) -> bool:
    """Whether Triton, or torch's compiler, would find a compiler where it looks, and this Python's headers."""
    names = [os.environ[variable]] if variable in os.environ else usual
    return any(map(shutil.which, names)) and (Path(sysconfig.get_path("include")) / "Python.h").is_file()


class Single(Alone):
    """One process, one device: nothing to share, so sums and norms are its own."""

    num_shards = 1

    def __init__(self, device: str | torch.device, precision: Precision) -> None:
        """Computes on `device`; with bf16, forward passes run under autocast and weights stay fp32."""
        self.device = self.loads_on = torch.device(device)
        # Where DeepSpeed is installed, transformers imports it, and left alone it finds a device and says so on stdout.
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)
        self._precision = precision

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model."""
        return model

    def wrap_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer."""
        return optimizer

    def computing(self) -> AbstractContextManager[object]:
        """Autocast to bf16, or nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16")

    def gathered(self, model: nn.Module) -> AbstractContextManager[object]:
        """Nothing: all weights are here."""
        return nullcontext()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds gradients; there is nobody to reduce with, so the last microbatch is like any other."""
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm over this process' gradients."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def clip_gradients(self, parameters: Iterable[nn.Parameter], norm_max: float, norm: Tensor) -> None:
        """Scales gradients by min(1, norm_max / (norm + 1e-6))."""
        torch.nn.utils.clip_grads_with_norm_(parameters, norm_max, norm)

    def sum_over_ranks(self, value: float) -> float:
        """The value."""
        return value

    def whole(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module | None:
        """The model."""
        return model
