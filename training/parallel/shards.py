"""The part of a tensor that is in this process: what a checkpoint's file of one rank holds.

a DTensor       rows of it, as FSDP cuts
a cut weight    a run of its elements in the order in which they lie, as ZeRO cuts
any other       all of it
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Which elements of a weight this rank has, and where they are updated."""

    shape: tuple[int, ...]
    """Of the whole weight."""
    start: int
    """Elements of the weight that lie before."""
    values: Tensor


def cut(weight: Tensor, run: Run) -> None:
    """Says of a weight that this rank's part of it is `run`."""
    weight._run = run  # type: ignore[attr-defined]  # parameters may carry what one likes


def _run_of(tensor: Tensor) -> Run | None:
    return getattr(tensor, "_run", None)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape of the tensor, all ranks' parts together."""
    run = _run_of(tensor)
    return run.shape if run else tuple(tensor.shape)


def part_of(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; a tensor that is whole, as it is."""
    if run := _run_of(tensor):
        return run.values
    # Asked of the tensor, for importing DTensor to ask the other way takes time that a single process need not spend.
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.detach()


def part_as(whole: Tensor, model: Tensor) -> Tensor:
    """The part of `whole` that this rank has of `model`; all of it if `model` is not sharded."""
    if run := _run_of(model):
        return whole.reshape(-1).narrow(0, run.start, run.values.numel())
    if not hasattr(model, "to_local"):
        return whole
    from torch.distributed.tensor import DTensor

    # As FSDP cuts: along the first dimension, into pieces of which the last ranks may get none.
    assert isinstance(model, DTensor)
    across = model.device_mesh.ndim - 1
    pieces = whole.chunk(model.device_mesh.size(across))
    rank = model.device_mesh.get_local_rank(across)
    return pieces[rank] if rank < len(pieces) else whole[:0]


def sharded_as(part: Tensor, model: Tensor) -> Tensor:
    """The part as a tensor that is sharded, or whole, like `model`."""
    if not hasattr(model, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(model, DTensor)
    return DTensor.from_local(
        part.to(model.to_local().device), model.device_mesh, model.placements, shape=model.shape, stride=model.stride()
    )
