"""TRL's losses and gradients of rewarded completions are ours; where it means to differ, by exactly its formula.

The completions are drawn by TRL itself. Shapes: N completions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.benchmark.peers.asking import (
    COMPLETION_TOKENS_MAX,
    LOSS,
    Learned,
    Side,
    assert_same,
    assert_same_gradient,
    moved,
    ours,
    settings,
    taken,
)
from tests.support.examples import example
from training.algorithms.advantages import group_advantages, rloo_advantages
from training.algorithms.grpo import ADVANTAGES, POLICY, Grpo, LengthNormalization, token_weight
from training.algorithms.grpo import REFERENCE as REFERENCE_T
from training.data.batch import microbatch
from training.data.example import Example
from training.models.forward import logprobs
from training.models.tiny import tiny_tokenizer

# Rewards.


@dataclass
class Judge:
    """A reward of what was drawn that is not the same for any two, and what it has said."""

    said: list[float]

    @property
    def __name__(self) -> str:
        return "judge"

    def __call__(self, completion_ids: Sequence[Sequence[int]], **others: Any) -> list[float]:
        self.said = [(sum(ids) % 97) / 97 + 0.01 * len(ids) for ids in completion_ids]
        return self.said


PROMPTS = Dataset.from_list([{"prompt": text} for text in ("one", "2 + 2 =", "a longer prompt", "b")])
NUM_OF_EACH = 4


@dataclass
class Rollout:
    """A rollout by a trainer of TRL, from weights `moved(1)`, with `moved(0)` as its reference."""

    trainer: Any
    inputs: dict[str, Any]
    rewards: Tensor

    @property
    def rows(self) -> list[Side]:
        """Prompts and completions without their padding."""
        ids = {name: self.inputs[f"{name}_ids"] for name in ("prompt", "completion")}
        masks = {name: self.inputs[f"{name}_mask"].bool() for name in ("prompt", "completion")}
        return [
            (prompt[keeps].tolist(), completion[kept].tolist())
            for prompt, keeps, completion, kept in zip(
                ids["prompt"], masks["prompt"], ids["completion"], masks["completion"], strict=True
            )
        ]

    def learned(self, rows: slice = slice(None), times: int = 2) -> Learned:
        """TRL's loss of these completions at other weights, as in a second step of the same rollout."""
        self.trainer.model.load_state_dict(moved(times).state_dict())
        inputs = {
            name: value[rows] if isinstance(value, Tensor) and value.dim() else value
            for name, value in self.inputs.items()
        }
        return taken(self.trainer.compute_loss(self.trainer.model, inputs), self.trainer.model)


def rollout(kind: Any, config: Any, base: Path, out: Path, **others: Any) -> Rollout:
    """Completions drawn and judged by the trainer, as it does before a step."""
    judge = Judge([])
    trainer: Any = kind(
        model=str(base),
        reward_funcs=judge,
        args=config(
            **settings(out),
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            num_generations=NUM_OF_EACH,
            # Two steps of each rollout, so that it keeps what the policy was.
            num_iterations=2,
            max_completion_length=COMPLETION_TOKENS_MAX,
            temperature=1.0,
            model_init_kwargs={"dtype": "float32"},
            **others,
        ),
        train_dataset=PROMPTS,
        processing_class=tiny_tokenizer(),
    )
    trainer.model.load_state_dict(moved(1).state_dict())
    # In evaluation a loss is that of the batch itself, not a share of an accumulated one.
    trainer.model.eval()
    torch.manual_seed(0)
    inputs = trainer._prepare_inputs([each for each in PROMPTS for _ in range(NUM_OF_EACH)])
    drawn = Rollout(trainer, inputs, torch.tensor(judge.said))
    assert len({len(completion) for _, completion in drawn.rows}) > 3, "else ways to weigh lengths are all the same"
    return drawn


def examples_of(drawn: Rollout, advantages: Tensor, normalization: LengthNormalization) -> list[Example]:
    """The completions as a rollout of ours makes them: each a sample, its tokens with their columns."""
    policy, reference = moved(1), moved(0)
    made = []
    for (prompt, completion), advantage in zip(drawn.rows, advantages.flatten().tolist(), strict=True):
        weight = token_weight(len(completion), normalization, COMPLETION_TOKENS_MAX)
        each = example(prompt + completion, [0.0] * len(prompt) + [weight] * len(completion))
        columns = {ADVANTAGES: np.full(len(each), advantage, dtype=np.float32)}
        for name, model in ((POLICY, policy), (REFERENCE_T, reference)):
            with torch.no_grad():
                said = logprobs(model, microbatch([each]), torch.arange(1, len(each)))
            columns[name] = np.concatenate([[0.0], said.numpy()]).astype(np.float32)
        made.append(replace(each, columns=columns))
    return made


def grpo_of(normalization: LengthNormalization, **others: Any) -> Grpo:
    return Grpo(**{"clip_low": 0.2, "clip_high": 0.28, "normalization": normalization, **others})


GRPO: dict[str, LengthNormalization] = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}


@pytest.mark.parametrize("loss", GRPO)
def test_grpo(loss: str, base: Path, tmp_path: Path) -> None:
    """Advantages too; at weights that have moved, so that ratios are not 1 and some are clipped."""
    is_scaled = loss != "dr_grpo"
    drawn = rollout(
        GRPOTrainer,
        GRPOConfig,
        base,
        tmp_path,
        loss_type=loss,
        beta=0.04,
        epsilon=0.2,
        epsilon_high=0.28,
        scale_rewards="group" if is_scaled else "none",
        use_bias_correction_kl=False,
    )
    advantages = group_advantages(drawn.rewards.view(-1, NUM_OF_EACH), divide_by_std=is_scaled)
    assert torch.allclose(advantages.flatten(), drawn.inputs["advantages"], atol=LOSS)
    examples = examples_of(drawn, advantages, GRPO[loss])
    algorithm = grpo_of(GRPO[loss], kl_coefficient=0.04)
    assert_same(ours(algorithm, examples, moved(2)), drawn.learned())
    _, described = algorithm.loss_sum(partial(logprobs, moved(2)), microbatch(examples))
    assert described["clip_fraction"] > 0

    # The same completions as two batches of a device: a sum over all tokens, or a mean of two means.
    halves = [drawn.learned(half) for half in (slice(0, 8), slice(8, 16))]
    if loss == "dapo":
        assert sum(each.loss for each in halves) == pytest.approx(ours(algorithm, examples, moved(2)).loss, abs=LOSS)
    if loss == "bnpo":
        by_halves = [ours(algorithm, examples[half], moved(2)).loss for half in (slice(0, 8), slice(8, 16))]
        assert [each.loss for each in halves] == pytest.approx(by_halves, abs=LOSS)
        assert abs(sum(by_halves) / 2 - ours(algorithm, examples, moved(2)).loss) > 10 * LOSS


def test_trl_multiplies_the_divergence_by_the_ratio_unless_told_not_to(base: Path, tmp_path: Path) -> None:
    """GRPO's equation 3 has KL_t beside the ratio, not under it; TRL's own default has ρ_t KL_t."""
    drawn = rollout(
        GRPOTrainer,
        GRPOConfig,
        base,
        tmp_path,
        loss_type="grpo",
        beta=0.5,
        scale_rewards="group",
        use_bias_correction_kl=True,
        epsilon=0.2,
        epsilon_high=0.28,
    )
    examples = examples_of(drawn, drawn.inputs["advantages"], "sequence")
    algorithm = grpo_of("sequence", kl_coefficient=0.5)
    extra = 0.0
    for each in examples:
        at = torch.tensor(np.flatnonzero(each.weights))
        with torch.no_grad():
            now = logprobs(moved(2), microbatch([each]), at)
        _, described = algorithm.losses(now, {name: torch.tensor(c)[at] for name, c in each.columns.items()})
        extra += 0.5 * (described["kl"] * (described["ratio"] - 1)).mean().item() / len(examples)
    assert abs(extra) > 10 * LOSS
    assert drawn.learned().loss == pytest.approx(ours(algorithm, examples, moved(2)).loss + extra, abs=LOSS)


def test_rloo_has_trls_gradient_on_policy(base: Path, tmp_path: Path) -> None:
    """Σ_t log π(x_t) of whole sequences; `constant` has 1 / L before it, and a loss of its own scale.

    On policy TRL's loss is −mean(A), which is 0, and ours −Σ A_i |y_i| / (L N): other numbers of the same gradient.
    """
    drawn = rollout(RLOOTrainer, RLOOConfig, base, tmp_path, beta=0.0, epsilon=0.2)
    advantages = rloo_advantages(drawn.rewards.view(-1, NUM_OF_EACH)).flatten()
    assert torch.allclose(advantages, drawn.inputs["advantages"], atol=LOSS)
    by_trl = drawn.learned(times=1)
    by_us = ours(grpo_of("constant"), examples_of(drawn, advantages, "constant"), moved(1))
    assert_same_gradient(by_us, by_trl, 1 / COMPLETION_TOKENS_MAX)
    lengths = torch.tensor([len(completion) for _, completion in drawn.rows])
    assert by_trl.loss == pytest.approx(-advantages.mean().item(), abs=LOSS)
    assert by_us.loss == pytest.approx(-(advantages * lengths).mean().item() / COMPLETION_TOKENS_MAX, abs=LOSS)


def test_rloo_off_policy_clips_a_sequence_in_trl_and_a_token_here(base: Path, tmp_path: Path) -> None:
    """And its divergence is taken off the reward, k1 summed over the completion (RLOO's paper, section 3).

    With the same advantages each is what its formula says of the same tokens, and the two are not the same.
    """
    drawn = rollout(RLOOTrainer, RLOOConfig, base, tmp_path, beta=0.5, epsilon=0.2)
    whole = examples_of(drawn, torch.zeros(16), "constant")
    counted = [np.flatnonzero(each.weights) for each in whole]
    k1 = [(each.columns[POLICY] - each.columns[REFERENCE_T])[at].sum() for each, at in zip(whole, counted, strict=True)]
    advantages = rloo_advantages((drawn.rewards - 0.5 * torch.tensor(np.array(k1))).view(-1, NUM_OF_EACH)).flatten()
    assert torch.allclose(advantages, drawn.inputs["advantages"], atol=LOSS)
    of_sequences, of_tokens = [], []
    for each, at, advantage in zip(whole, counted, advantages.tolist(), strict=True):
        with torch.no_grad():
            now = logprobs(moved(2), microbatch([each]), torch.tensor(at))
        moved_by = now.numpy() - each.columns[POLICY][at]
        for found, ratios in ((of_sequences, [math.exp(moved_by.sum())]), (of_tokens, np.exp(moved_by).tolist())):
            found.append(-sum(min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage) for ratio in ratios))
    assert drawn.learned().loss == pytest.approx(np.mean(of_sequences), rel=1e-5, abs=LOSS)
    examples = examples_of(drawn, advantages, "constant")
    by_us = ours(grpo_of("constant", clip_high=0.2), examples, moved(2)).loss
    assert by_us == pytest.approx(np.mean(of_tokens) / COMPLETION_TOKENS_MAX, rel=1e-5, abs=LOSS)
    assert abs(np.mean(of_tokens) - np.mean(of_sequences)) > 10 * LOSS
