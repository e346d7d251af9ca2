"""Of a tensor that is whole, the part is the tensor."""

import torch
from torch import nn

from training.parallel.shards import part_as, part_of, sharded_as


def test_a_whole_tensor_is_its_own_part() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(3, 2))
    part = part_of(weight)
    assert part.data_ptr() == weight.data_ptr()
    assert not part.requires_grad
    other = torch.ones(3, 2)
    assert part_as(other, weight) is other
    assert sharded_as(other, weight) is other
