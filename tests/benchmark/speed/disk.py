"""A checkpoint written and read by the toolkit, and as many bytes in one file by nothing but the system's own calls.

By the clock, since it is the disk that is waited for. What was written is flushed, and what is read is first dropped
from memory. The toolkit also hashes each byte, both ways, and reads into a model and an optimizer that are there.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.benchmark.speed.work import RATE, SHAPES, cost_of, model_of, settle, tell
from training.checkpoint.resume import load
from training.checkpoint.save import save
from training.checkpoint.state import capture, restore
from training.optimizer import adamw

BLOCK = 1 << 22


def forget(path: Path) -> None:
    """Drops a file from the system's memory, so that the next who reads it reads the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def trained(shape: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after a step."""
    model = model_of(shape)
    optimizer = adamw(model, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    optimizer.step()
    return model, optimizer


def written(model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path, step: int) -> Path:
    """A committed checkpoint; the one before goes."""
    state = {"identity": {"plan": {}, "trained weights": {}}, "num_shards": 1, "replicated": []}
    return save(directory, step, tensors=capture(model, optimizer), state=state, num_kept=1)


def sizes(directory: Path) -> int:
    """Bytes of the files in it."""
    return sum(each.stat().st_size for each in directory.iterdir())


def plain_write(path: Path, content: bytes) -> None:
    """The content in one file, flushed."""
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(content), BLOCK):
            file.write(content[begin : begin + BLOCK])
        os.fsync(file.fileno())


def plain_read(path: Path) -> None:
    """The file from its beginning to its end."""
    with path.open("rb", buffering=0) as file:
        while file.read(BLOCK):
            pass


def main() -> None:
    """Measures one way of writing or reading at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("way", choices=("plain", "toolkit"))
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    settle()
    model, optimizer = trained(arguments.shape)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoint = written(model, optimizer, directory / "checkpoints", 1)
        num_bytes = sizes(checkpoint)
        steps = iter(range(2, 10))
        plain = directory / "plain"
        content = os.urandom(num_bytes) if arguments.way == "plain" else b""

        def write() -> None:
            if arguments.way == "plain":
                plain_write(plain, content)
            else:
                written(model, optimizer, directory / "checkpoints", next(steps))

        def read() -> None:
            if arguments.way == "plain":
                forget(plain)
                plain_read(plain)
                return
            for each in checkpoint.iterdir():
                forget(each)
            restore(load(checkpoint).tensors, model, optimizer)

        work: Callable[[], None] = {"write": write, "read": read}[arguments.what]
        if arguments.way == "plain":
            plain_write(plain, content)
        cost = cost_of(work)
    tell(
        cost,
        num_bytes,
        float(num_bytes),
        packages=("torch", "safetensors"),
        seconds=cost.seconds,
        megabytes_per_processor_second=num_bytes / 1e6 / cost.cpu_seconds,
    )


if __name__ == "__main__":
    main()
