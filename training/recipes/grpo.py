"""Reinforcement learning from rewards of whole completions: GRPO with what DAPO, Dr. GRPO and RLOO chose, and PPO."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from training.algorithms.algorithm import Logprobs
from training.algorithms.grpo import Grpo
from training.algorithms.ppo import Ppo
from training.config import PpoSettings
from training.data.example import Example
from training.data.loader import fit
from training.data.prompts import read_prompts, render_prompt
from training.metrics.summary import FileSummary, added
from training.models.forward import logprobs
from training.models.load import load_model
from training.plan import Plan
from training.recipe import Running
from training.rollout.judge import RewardModel
from training.rollout.rewards import load_rewards
from training.rollout.rollouts import Rollouts


class GrpoRecipe:
    """What `training.run` asks of learning from rewards."""

    def algorithm(self, plan: Plan) -> Grpo | Ppo:
        """The clipped policy gradient; with a critic, its loss as well."""
        rl = plan.rl
        assert rl is not None
        policy = Grpo(
            clip_low=rl.clip_low,
            clip_high=rl.clip_high,
            normalization=rl.length_normalization,
            # With a critic the divergence is in the rewards.
            kl_coefficient=0.0 if plan.has_critic else rl.kl_coefficient,
            kl_estimator="k3" if rl.kl_estimator == "auto" else rl.kl_estimator,
            importance_max=rl.importance_max,
        )
        if isinstance(rl, PpoSettings):
            return Ppo(policy, value_coefficient=rl.value_coefficient, value_clip=rl.value_clip)
        return policy

    def read(self, plan: Plan, tokenizer: PreTrainedTokenizerBase, path: str) -> tuple[list[Example], FileSummary]:
        """Prompts that leave room for a completion."""
        assert plan.rl is not None
        # Found now, since a mistyped name should not cost a rollout.
        load_rewards(plan.rl.rewards, RewardModel)
        file = read_prompts(path, on_bad_sample=plan.on_bad_sample)
        rendered: list[Example] = [
            render_prompt(tokenizer, each, is_chat=plan.data_kind == "chat") for each in file.samples
        ]
        room = plan.tokens_per_sample_max - plan.rl.completion_tokens_max
        fitted = fit(rendered, tokens_per_sample_max=room, on_long_sample=plan.on_long_sample)
        return fitted.examples, FileSummary(
            path=path,
            num_samples_read=len(file.samples) + file.num_skipped,
            num_examples=len(fitted.examples),
            num_truncated=0,
            samples_skipped=added(file.skipped_reasons, fitted.skipped_reasons),
            first_skipped=file.first_skipped,
            keys_ignored={},
        )

    def batches(self, plan: Plan, examples: list[Example], running: Running) -> Rollouts:
        """Rollouts of the model in training."""
        assert plan.rl is not None
        judge = partial(RewardModel, tokens_per_call=plan.tokens_per_rank_max, device=running.backend.device)
        return Rollouts(
            plan,
            examples,  # type: ignore[arg-type]  # they are those that read returned
            model=running.model,
            tokenizer=running.tokenizer,
            backend=running.backend,
            logprobs=running.logprobs,
            reference=_reference(plan, running) if plan.rl.kl_coefficient else None,
            rewards=load_rewards(plan.rl.rewards, judge),
        )


def _reference(plan: Plan, running: Running) -> Callable[[], AbstractContextManager[Logprobs]]:
    """The model that the run began with: the one under the adapter or, of all weights, a second one on every rank."""
    if plan.lora:
        adapted: Any = running.model

        @contextmanager
        def without_adapter() -> Iterator[Logprobs]:
            with adapted.disable_adapter():
                yield running.logprobs

        return without_adapter
    model = load_model(
        plan.model_path,
        attention=plan.attention,
        device=running.backend.device,
        needs_chat_template=False,
    ).model
    model.train(mode=False).requires_grad_(requires_grad=False)

    @contextmanager
    def second() -> Iterator[Logprobs]:
        with torch.no_grad():
            yield partial(logprobs, model)

    return second
