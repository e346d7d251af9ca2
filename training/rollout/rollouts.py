"""The batches of a run that learns from what its model says: a rollout every few steps, and the steps' shares of it.

    prompts of the rollout → completions, shared by the ranks → rewards → all of it on every rank
        → log-probabilities of policy and reference as they are now, values of a critic → advantages → batches of steps

A rollout's completions are seen `epochs_per_rollout` times, in other orders. Which prompts it has, and every draw of
its completions, follow from the seed and its number.

A checkpoint in the middle of a rollout holds the rest of it, since the weights it was drawn with are gone: what goes on
from there sees the same samples, bit for bit. Between rollouts it holds nothing.
"""

import base64
import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from training.algorithms.algorithm import Logprobs
from training.algorithms.grpo import ADVANTAGES, POLICY, REFERENCE, SAMPLED, token_weight
from training.algorithms.ppo import OLD_VALUES
from training.config import RlConfig
from training.data.batch import Batch
from training.data.example import Example
from training.data.loader import Loader, permutation
from training.data.prompts import Prompt
from training.errors import RewardError
from training.metrics.records import StepRecord
from training.parallel.backend import Backend
from training.parallel.scores import scores
from training.plan import Plan
from training.rollout.credit import credit
from training.rollout.episodes import Answer, Episodes, seed_of
from training.whole import write_whole


@dataclass(frozen=True)
class Rollout:
    """The samples of a few steps, the same on every rank."""

    number: int
    examples: list[Example]
    metrics: dict[str, float]
    """Of the completions; the same for each step that learns from them."""


class Rollouts:
    """Gives the batch of any step whose rollout is at hand, and makes the next rollout when a step is its first."""

    def __init__(
        self,
        plan: Plan,
        prompts: Sequence[Prompt],
        *,
        episodes: Episodes,
        model: nn.Module,
        backend: Backend,
        logprobs: Logprobs,
        reference: Callable[[], AbstractContextManager[Logprobs]] | None,
        sync: Callable[[int], None] | None = None,
    ) -> None:
        """Takes a model as its backend trains it.

        Args:
            plan: whose `rl` says how.
            prompts: all of them, the same on every rank.
            episodes: gives completions with their rewards.
            model: whose evaluation is switched on where it is asked for numbers.
            backend: what the ranks share.
            logprobs: the model's answers to an algorithm; of a model with a critic [K, 2], values beside them.
            reference: while entered, those of the reference; None if nothing asks for it.
            sync: called by all ranks before each rollout, gives a server the weights; None leaves it those it has.
        """
        assert plan.rl is not None
        self.plan, self.rl = plan, plan.rl
        self.prompts, self.episodes, self.sync = prompts, episodes, sync
        self.model, self.backend, self.logprobs, self.reference = model, backend, logprobs, reference
        self.steps_per_rollout = self.rl.steps_per_rollout * self.rl.epochs_per_rollout
        self.num_samples = plan.samples_per_step * self.rl.steps_per_rollout
        self.group_size = self.rl.group_size if isinstance(self.rl, RlConfig) else 1
        self.redraws_max = (self.rl.redraws_max or 0) if isinstance(self.rl, RlConfig) else 0
        self.num_prompts = self.num_samples // self.group_size
        self._rollout: Rollout | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every prompt is asked once."""
        return -(-len(self.prompts) // self.num_prompts) * self.steps_per_rollout

    def batch(self, step: int) -> Batch:
        """The batch of a step; all ranks ask for it."""
        number, within = divmod(step, self.steps_per_rollout)
        if self._rollout is None or self._rollout.number != number:
            self._rollout = self._roll(number)
        loader = Loader(
            self._rollout.examples,
            samples_per_step=self.plan.samples_per_step,
            tokens_per_rank_max=self.plan.tokens_per_rank_max,
            seed=(self.plan.seed + number) % 2**32,
            rank=self.backend.rank,
            num_ranks=self.backend.num_ranks,
            packing=self.plan.packing,
            share_prompts=self.plan.share_prompts,
        )
        batch = loader.batch(within)
        return replace(batch, step=step, epoch=step // self.steps_per_epoch)

    def described(self, record: StepRecord) -> StepRecord:
        """The record with what its rollout came to, and the algorithm's means over tokens as such."""
        assert self._rollout is not None
        metrics = {name: each / record.metrics["weight"] for name, each in record.metrics.items() if name != "weight"}
        return replace(record, metrics=metrics | self._rollout.metrics)

    def state(self, step: int) -> dict[str, Any] | None:
        """What a checkpoint after `step` steps needs to go on, as JSON values."""
        if step % self.steps_per_rollout == 0:
            return None
        assert self._rollout is not None
        examples = self._rollout.examples
        arrays = {
            "lengths": np.array([len(each) for each in examples]),
            "token_ids": np.concatenate([each.token_ids for each in examples]),
            "weights": np.concatenate([each.weights for each in examples]),
        } | {name: np.concatenate([each.columns[name] for each in examples]) for name in examples[0].columns}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        return {
            "number": self._rollout.number,
            "metrics": self._rollout.metrics,
            "where": [each.where for each in examples],
            "arrays": base64.b64encode(file.getvalue()).decode("ascii"),
        }

    def restore(self, step: int, state: dict[str, Any] | None) -> None:
        """Goes on after `step` steps with what `state` returned then."""
        if self.backend.rank == 0:
            _drop_from(self._path, step)
        if state is None:
            return
        arrays = np.load(io.BytesIO(base64.b64decode(state["arrays"])), allow_pickle=False)
        ends = np.cumsum(arrays["lengths"])[:-1]
        split = {name: np.split(arrays[name], ends) for name in arrays.files if name != "lengths"}
        ids, weights = split.pop("token_ids"), split.pop("weights")
        examples = [
            Example(ids[row], weights[row], where, columns={name: split[name][row] for name in split})
            for row, where in enumerate(state["where"])
        ]
        self._rollout = Rollout(state["number"], examples, state["metrics"])

    @property
    def _path(self) -> Path:
        return Path(self.plan.out) / "completions.jsonl"

    def _roll(self, number: int) -> Rollout:
        started = time.perf_counter()
        if self.sync is not None:
            self.sync(number)
        prompts = [self._asked(number * self.num_prompts + each) for each in range(self.num_prompts)]
        asked = [prompt for prompt in prompts for _ in range(self.group_size)]
        synced = time.perf_counter()
        # Once for all tokens; a server has weights of its own.
        with nullcontext() if self.episodes.engine else self.backend.gathered(self.model):
            seconds_gathering = time.perf_counter() - synced
            answers = self.episodes.answers(asked, number)
            num_redrawn = self._redraw_uniform(number, asked, answers) if self.redraws_max else 0
        seconds = time.perf_counter() - started
        rewards = [each.scored.total for each in answers]
        examples = [self._example(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]
        examples, mismatch = self._with_logprobs(examples)
        examples, credited = credit(self.rl, examples, rewards)
        if self.backend.rank == 0:
            advantages = [float(each.columns[ADVANTAGES][each.weights > 0].mean()) for each in examples]
            self._write(number * self.steps_per_rollout, asked, answers, advantages)
        lengths = np.array([each.is_drawn.sum() for each in answers])
        metrics = {
            "reward_mean": float(np.mean(rewards)),
            "reward_std": float(np.std(rewards, ddof=1)) if len(rewards) > 1 else 0.0,
            "reward_errors": float(sum(each.scored.num_errors for each in answers)),
            "length_mean": float(lengths.mean()),
            "finished_fraction": float(np.mean([each.completion.is_finished for each in answers])),
            "mismatch_mean": float(mismatch.mean()),
            "mismatch_max": float(mismatch.max()),
            "seconds_gathering": seconds_gathering,
            "seconds_generating": seconds,
        } | credited
        if self.redraws_max:
            metrics["groups_redrawn"] = float(num_redrawn)
        if self.rl.environment:
            turns = [sum(turn["role"] == "assistant" for turn in each.turns) for each in answers]
            metrics["turns_mean"] = float(np.mean(turns))
        if len(self.episodes.rewards) > 1:
            for each in self.episodes.rewards:
                metrics[f"reward {each.name}"] = float(np.mean([a.scored.each[each.name] for a in answers]))
        return Rollout(number, examples, metrics)

    def _asked(self, number: int) -> Prompt:
        """The prompt with this number in the order of all epochs."""
        epoch, within = divmod(number, len(self.prompts))
        return self.prompts[int(permutation(len(self.prompts), seed=self.plan.seed, epoch=epoch)[within])]

    def _redraw_uniform(self, rollout: int, asked: list[Prompt], answers: list[Answer]) -> int:
        """Replaces, in both lists, groups whose rewards are all alike by others; returns how many it has drawn.

        Which prompts come instead follows from the rollout's number, as all draws do: there is nothing to remember.

        Raises:
            RewardError: all groups are alike even then.
        """
        num_drawn = 0
        for attempt in range(1, self.redraws_max + 1):
            uniform = self._uniform_groups(answers)
            if not uniform:
                break
            seed = seed_of(self.plan.seed, rollout, attempt=attempt) % 2**32
            order = permutation(len(self.prompts), seed=seed, epoch=0)
            others = [self.prompts[int(order[each % len(order)])] for each in range(len(uniform))]
            drawn = self.episodes.answers(
                [prompt for prompt in others for _ in range(self.group_size)], rollout, attempt
            )
            for each, (group, prompt) in enumerate(zip(uniform, others, strict=True)):
                for within in range(self.group_size):
                    place = group * self.group_size + within
                    asked[place] = prompt
                    answers[place] = replace(drawn[each * self.group_size + within], number=place)
            num_drawn += len(uniform)
        if len(self._uniform_groups(answers)) == self.num_prompts:
            raise RewardError(
                f"rollout {rollout}",
                got=f"the rewards of each of {self.num_prompts} groups are all alike, {self.redraws_max} time(s) "
                "after they were replaced",
                expected="a group in which one completion is better than another",
                hint="give prompts that the model solves sometimes, larger groups, or more of rl.redraws_max; if "
                "everything is solved, the run has done its work: its last checkpoint has it",
            )
        return num_drawn

    def _uniform_groups(self, answers: Sequence[Answer]) -> list[int]:
        """The numbers of the groups from which nothing is learned."""
        totals = [each.scored.total for each in answers]
        groups = [totals[first : first + self.group_size] for first in range(0, len(totals), self.group_size)]
        return [number for number, group in enumerate(groups) if len(set(group)) == 1]

    def _example(self, prompt: Prompt, answer: Answer) -> Example:
        """Prompt and completion; the tokens that were drawn count, the one that ended it among them."""
        completion = answer.completion
        num_given, num_after = len(prompt), len(completion.token_ids)
        weight = token_weight(int(answer.is_drawn.sum()), self.rl.length_normalization, self.rl.completion_tokens_max)

        def after_prompt(values: Any) -> NDArray[np.float32]:
            column = np.zeros(num_given + num_after, dtype=np.float32)
            column[num_given:] = values
            return column

        return Example(
            np.concatenate([prompt.token_ids, completion.token_ids]),
            after_prompt(weight * answer.is_drawn),
            prompt.where,
            columns={SAMPLED: after_prompt(completion.logprobs)},
        )

    def _with_logprobs(self, examples: Sequence[Example]) -> tuple[list[Example], NDArray[np.float32]]:
        """The examples with what the models say now, and how far sampler and policy are apart, by token."""
        said = self._scores(examples, self.logprobs)
        columns = {POLICY: [each[:, 0] for each in said]}
        if self.plan.has_critic:
            columns[OLD_VALUES] = [each[:, 1] for each in said]
        if self.reference is not None:
            with self.reference() as logprobs:
                columns[REFERENCE] = [each[:, 0] for each in self._scores(examples, logprobs)]
        complete = [
            replace(each, columns={**each.columns, **{name: column[row] for name, column in columns.items()}})
            for row, each in enumerate(examples)
        ]
        apart = [np.abs(each.columns[POLICY] - each.columns[SAMPLED])[each.weights > 0] for each in complete]
        return complete, np.concatenate(apart)

    def _scores(self, examples: Sequence[Example], logprobs: Logprobs) -> list[NDArray[np.float32]]:
        """Of each example what is said of each token that counts, in rows, 0 elsewhere."""
        tokens = self.plan.tokens_per_rank_max if self.plan.packing else None
        return scores(
            examples,
            logprobs,
            model=self.model,
            backend=self.backend,
            tokens_per_rank_max=tokens,
            share_prompts=self.plan.share_prompts,
            keep=lambda example, said_TC: said_TC,
        )

    def _write(
        self, step: int, asked: Sequence[Prompt], answers: Sequence[Answer], advantages: Sequence[float]
    ) -> None:
        """Appends a line for each completion."""
        with self._path.open("a", encoding="utf-8") as file:
            for prompt, answer, advantage in zip(asked, answers, advantages, strict=True):
                line = {
                    "step": step,
                    "where": prompt.where,
                    "prompt": prompt.given,
                    "completion": answer.text,
                    **({"turns": answer.turns} if answer.turns else {}),
                    "reward": answer.scored.total,
                    "rewards": dict(answer.scored.each),
                    "advantage": advantage,
                    "num_tokens": int(answer.is_drawn.sum()),
                    "is_finished": answer.completion.is_finished,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _drop_from(path: Path, step: int) -> None:
    """Rewrites the file without the rollouts that will be made again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() and step else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(kept))
