"""The part of a tensor that is in this process: what a checkpoint's file of one rank holds."""

from torch import Tensor


def part_of(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; a tensor that is whole, as it is."""
    # Asked of the tensor, for importing DTensor to ask the other way takes time that a single process need not spend.
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part.detach()


def part_as(whole: Tensor, model: Tensor) -> Tensor:
    """The part of `whole` that this rank has of `model`; all of it if `model` is not sharded."""
    if not hasattr(model, "to_local"):
        return whole
    from torch.distributed.tensor import DTensor

    # As FSDP cuts: along the first dimension, into pieces of which the last ranks may get none.
    assert isinstance(model, DTensor)
    pieces = whole.chunk(model.device_mesh.size())
    rank = model.device_mesh.get_local_rank()
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
