"""Gradients travel in buckets of one type, in order, none left out."""

import pytest
import torch

from training.parallel import ddp


def test_buckets_hold_every_gradient_in_order_by_type_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddp, "BYTES_PER_BUCKET", 16)
    sizes = [(2, torch.float32), (2, torch.float32), (1, torch.float32), (9, torch.float32), (1, torch.bfloat16)]
    gradients = [torch.zeros(size, dtype=dtype) for size, dtype in sizes]
    buckets = list(ddp._buckets(gradients))
    assert [[len(each) for each in bucket] for bucket in buckets] == [[2, 2], [1, 9], [1]]
    flat = [each for bucket in buckets for each in bucket]
    assert all(one is other for one, other in zip(flat, gradients, strict=True))
    assert list(ddp._buckets([])) == []
