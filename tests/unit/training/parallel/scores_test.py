"""What a model says of many examples comes in their order, however they are packed, with dropout off."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.alone import logprobs_alone
from tests.support.examples import answered, random_examples
from tests.support.tolerances import LOGPROB_FP32
from training.config import LoraConfig
from training.models.forward import logprobs
from training.models.lora import add_adapter
from training.models.tiny import tiny_model
from training.parallel.scores import scores
from training.parallel.single import Single

EXAMPLES = [*random_examples([5, 19, 2, 11, 3, 8], seed=3), *answered([5, 4, 3, 2], [[1], [2, 3, 4], [5, 6]])]


def said_of(model: Any, answers: Any, tokens: int | None, *, share_prompts: bool = False) -> list[Any]:
    return scores(
        EXAMPLES,
        answers,
        model=model,
        backend=Single("cpu", "fp32"),
        tokens_per_rank_max=tokens,
        share_prompts=share_prompts,
        keep=lambda example, said_TC: (example.where, said_TC),
    )


@pytest.mark.parametrize(("tokens", "share_prompts"), [(None, False), (20, False), (20, True), (100, True)])
def test_each_token_that_counts_has_what_the_model_says_of_its_document_alone(
    tokens: int | None, share_prompts: bool
) -> None:
    """A model that drops a half of what its adapter says, in training."""
    model = add_adapter(tiny_model(), LoraConfig(dropout=0.5))
    torch.nn.init.ones_(next(each for name, each in model.named_parameters() if "lora_B" in name))
    model.train()
    found = said_of(model, partial(logprobs, model), tokens, share_prompts=share_prompts)
    assert model.training
    assert [where for where, _ in found] == [each.where for each in EXAMPLES]
    model.eval()
    for each, (_, said_T1) in zip(EXAMPLES, found, strict=True):
        with torch.no_grad():
            expected = torch.stack(logprobs_alone(model.get_base_model(), each.token_ids)).numpy()
        assert said_T1.shape == (len(each), 1)
        assert np.abs(said_T1[:, 0] - expected * (each.weights > 0)).max() <= LOGPROB_FP32


def test_several_numbers_of_a_token_are_columns() -> None:
    def answers(microbatch: Any, next_K: Tensor, weights_K: Tensor | None) -> Tensor:
        return torch.stack([microbatch.token_ids_T[next_K], next_K - next_K], dim=1)

    for each, (_, said_T2) in zip(EXAMPLES, said_of(tiny_model(), answers, 20), strict=True):
        assert said_T2[:, 0].tolist() == (each.token_ids * (each.weights > 0)).tolist()
        assert not said_T2[:, 1].any()
