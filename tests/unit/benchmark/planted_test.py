"""The planted fault is the one that it is named after."""

import pytest
import torch

from tests.benchmark.planted import labels_shifted
from tests.support.examples import example
from training import run
from training.data.batch import microbatch
from training.models.forward import logits
from training.models.tiny import tiny_model


def test_with_shifted_labels_each_position_is_asked_for_the_token_after_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = microbatch([example([5, 6, 7, 8])])
    model = tiny_model().eval()
    next_K = torch.tensor([1, 2])
    with torch.no_grad():
        expected_TV = torch.log_softmax(logits(model, packed), dim=-1)
        healthy_K = run.logprobs(model, packed, next_K)
        monkeypatch.setattr(run, "logprobs", run.logprobs)
        labels_shifted()
        shifted_K = run.logprobs(model, packed, next_K)
    assert torch.allclose(healthy_K, torch.stack([expected_TV[0, 6], expected_TV[1, 7]]), atol=1e-5)
    assert torch.allclose(shifted_K, torch.stack([expected_TV[0, 7], expected_TV[1, 8]]), atol=1e-5)
