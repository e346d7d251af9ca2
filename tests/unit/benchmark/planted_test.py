"""Each planted fault is the one that it is named after."""

from typing import Any

import pytest
import torch

from tests.benchmark.planted import advantages_negated, labels_shifted, pairs_swapped, ranking_swapped
from tests.support.chats import write_jsonl
from tests.support.examples import example
from training import run
from training.data.batch import microbatch
from training.data.pairs import read_pairs
from training.data.render import Renderer
from training.models.forward import logits
from training.models.tiny import tiny_model, tiny_tokenizer
from training.recipes import dpo, reward
from training.rollout import credit


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


def test_with_negated_advantages_the_best_of_a_group_is_discouraged(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards_PN = torch.tensor([[1.0, 0.0, 0.0]])
    healthy_PN = credit.group_advantages(rewards_PN, divide_by_std=False)
    monkeypatch.setattr(credit, "group_advantages", credit.group_advantages)
    advantages_negated()
    assert torch.equal(credit.group_advantages(rewards_PN, divide_by_std=False), -healthy_PN)
    assert healthy_PN[0, 0] > 0


@pytest.mark.parametrize(("plant", "recipe"), [(pairs_swapped, dpo), (ranking_swapped, reward)])
def test_with_swapped_pairs_the_rejected_completion_comes_first(
    plant: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "1+1", "chosen": "2", "rejected": "345"}])
    (pair,) = read_pairs(path).samples
    renderer = Renderer(tiny_tokenizer())
    healthy = recipe.pair_example(renderer, pair)
    monkeypatch.setattr(recipe, "pair_example", recipe.pair_example)
    plant()
    found = recipe.pair_example(renderer, pair)
    second = int(healthy.document_starts[1])
    assert found.token_ids.tolist() == [*healthy.token_ids[second:].tolist(), *healthy.token_ids[:second].tolist()]
