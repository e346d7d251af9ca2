"""What a verdict was made on and with: the machine, its accelerators and their driver, and the wheels."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

WHEELS = ("torch", "transformers", "peft", "tokenizers", "safetensors", "deepspeed", "bitsandbytes", "numpy", "triton")


def versions() -> dict[str, str]:
    """Versions of Python and of the wheels that decide what a run computes; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in WHEELS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(file: Path) -> None:
    """Writes what this machine is, and the versions of what it runs, into a file.

    To be called in a process of its own: one that has looked at an accelerator can no longer be forked.
    """
    import torch

    accelerators: list[dict[str, Any]] = []
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        for number in range(module.device_count() if module.is_available() else 0):
            properties = module.get_device_properties(number)
            accelerators.append({"name": properties.name, "memory_bytes": properties.total_memory})
    machine = {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "processor": _value(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": accelerators,
        "num_accelerators": len(accelerators),
        "driver": _driver(),
        "torch_build": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "xpu": getattr(torch.version, "xpu", None),
        },
    }
    content = {"hardware": machine, "versions": versions()}
    file.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _driver() -> str | None:
    """The version of the accelerator's driver in the kernel, or None."""
    nvidia = Path("/proc/driver/nvidia/version")
    if nvidia.exists():
        return nvidia.read_text(encoding="utf-8").splitlines()[0]
    for module in ("amdgpu", "xe", "i915"):
        version = Path("/sys/module") / module / "version"
        if version.exists():
            return f"{module} {version.read_text(encoding='utf-8').strip()}"
    return None


def _value(file: Path, name: str) -> str:
    """The first value of a name in a file of `name : value` lines."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), platform.processor())
