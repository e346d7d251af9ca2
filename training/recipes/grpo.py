"""Reinforcement learning from rewards of whole completions: GRPO with what DAPO, Dr. GRPO and RLOO chose, and PPO."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
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
from training.models.critic import NAME
from training.models.forward import logprobs
from training.models.load import load_model
from training.models.lora import save_adapter
from training.parallel.first import on_first
from training.plan import Plan
from training.recipe import Running
from training.rollout.engine import HttpEngine
from training.rollout.episodes import Episodes
from training.rollout.judge import RewardModel
from training.rollout.rewards import load_function, load_rewards
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
        if plan.rl.environment:
            load_function(plan.rl.environment, "rl.environment")
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
        engine = HttpEngine(plan.engine, at_once=plan.rl.sequences_per_call) if plan.engine else None
        episodes = Episodes(
            plan,
            model=running.model,
            tokenizer=running.tokenizer,
            backend=running.backend,
            rewards=load_rewards(plan.rl.rewards, judge),
            engine=engine,
            environment=load_function(plan.rl.environment, "rl.environment") if plan.rl.environment else None,
        )
        return Rollouts(
            plan,
            examples,  # type: ignore[arg-type]  # they are those that read returned
            episodes=episodes,
            model=running.model,
            backend=running.backend,
            logprobs=running.logprobs,
            reference=_reference(plan, running) if plan.rl.kl_coefficient else None,
            sync=partial(_sync, plan, running, engine) if engine and plan.rl.engine_sync else None,
        )


def _sync(plan: Plan, running: Running, engine: HttpEngine, rollout: int) -> None:
    """Gives the engine the weights as they are now, by a directory. Two take turns, as it may still read the last."""
    assert plan.rl is not None
    is_adapter, backend = plan.rl.engine_sync == "adapter", running.backend
    directory = Path(plan.out).resolve() / "engine" / str(rollout % 2)
    # A server may still know the names of a run that was interrupted.
    name = backend.gather(f"rollout-{rollout}-{time.time_ns()}")[0]
    whole: Any = backend.whole(running.model, running.build)

    def given() -> None:
        if is_adapter:
            save_adapter(whole, directory)
            engine.load_adapter(name, directory, loads=True)
        else:
            weights = {name: each for name, each in whole.state_dict().items() if not name.startswith(f"{NAME}.")}
            whole.save_pretrained(directory, state_dict=weights)
            running.tokenizer.save_pretrained(directory)
            engine.load_weights(directory)

    # Nobody draws before the server has them.
    on_first(backend, given)
    if is_adapter and backend.rank > 0:
        engine.load_adapter(name, directory, loads=False)


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
