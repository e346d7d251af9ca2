"""What follows prompts, and what it is worth: one turn of the model, or several with an environment between them.

    prompt → turn of the model → the environment's reply → turn of the model → …        until it has none, or no room

An environment is made for each completion by a function of the user's, `make(prompt, **columns)`, and answers a turn:

    def respond(completion) -> str | list of messages | None        None ends the episode

All of it becomes one document, in the tokens that were drawn and none that were rendered again: what the model said
counts, what the environment said is read and has no weight. Which turns a rank draws in one call does not matter, and
ranks that share weights call the model equally often.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from training.algorithms.advantages import overlong_penalty
from training.data.prompts import Prompt, render_reply
from training.errors import RewardError
from training.parallel.backend import Backend
from training.plan import Plan
from training.rollout.engine import HttpEngine
from training.rollout.generate import Completion, Sampling, generate, stop_ids
from training.rollout.rewards import Answered, Reward, Scored, score


class Environment(Protocol):
    """Who answers the model within an episode: a tool, a game, somebody played."""

    def respond(self, completion: str) -> str | list[dict[str, Any]] | None:
        """The reply to a turn: messages, or a string for one of the user; None if there is nothing more to say."""
        ...


@dataclass(frozen=True)
class Answer:
    """What a rank tells the others of one completion."""

    number: int
    completion: Completion
    """All that follows the prompt."""
    is_drawn: NDArray[np.bool_]
    """Of each of its tokens; false where the environment speaks."""
    text: str
    """What the model said last."""
    turns: list[dict[str, Any]]
    """What both said, as messages; empty without an environment."""
    scored: Scored


@dataclass(eq=False)
class _Episode:
    number: int
    prompt: Prompt
    environment: Environment | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_drawn: list[bool] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    num_turns: int = 0
    is_over: bool = False
    is_finished: bool = False

    @property
    def so_far(self) -> NDArray[np.int32]:
        """Token ids of the prompt and all that followed."""
        return np.concatenate([self.prompt.token_ids, np.array(self.token_ids, dtype=np.int32)])

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float], *, is_drawn: bool) -> None:
        """Appends what one of the two said."""
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.is_drawn += [is_drawn] * len(token_ids)


class Episodes:
    """Draws and judges completions; the ranks share the work."""

    def __init__(
        self,
        plan: Plan,
        *,
        model: nn.Module,
        tokenizer: Any,
        backend: Backend,
        rewards: Sequence[Reward],
        engine: HttpEngine | None = None,
        environment: Callable[..., Environment] | None = None,
    ) -> None:
        """Takes a model as its backend trains it.

        Args:
            plan: whose `rl` says how.
            model: draws the completions.
            tokenizer: the model's.
            backend: what the ranks share.
            rewards: what completions are judged by.
            engine: draws the completions; None has the model do it.
            environment: makes one for each completion; None has all end with their first turn.
        """
        assert plan.rl is not None
        self.plan, self.rl = plan, plan.rl
        self.model, self.tokenizer, self.backend = model, tokenizer, backend
        self.rewards, self.engine, self.environment = rewards, engine, environment
        self.turns_max = plan.rl.turns_max or 1

    def answers(self, asked: Sequence[Prompt], rollout: int, attempt: int = 0) -> list[Answer]:
        """A scored completion for each prompt, in their order, on every rank; draws of further attempts are others."""
        everyone = [each for answers in self.backend.gather(self._mine(asked, rollout, attempt)) for each in answers]
        return sorted(everyone, key=lambda answer: answer.number)

    def _mine(self, asked: Sequence[Prompt], rollout: int, attempt: int) -> list[Answer]:
        episodes = list(self._played(asked, rollout, attempt))
        texts = [self._last_text(each) for each in episodes]
        answered = [
            Answered(each.prompt.given, text, self._columns(each), each.prompt.where)
            for each, text in zip(episodes, texts, strict=True)
        ]
        scored = score(self.rewards, answered, stops_at_error=self.rl.on_reward_error == "stop")
        if soft := self.rl.overlong_tokens:
            limit = self.rl.completion_tokens_max
            penalties = [overlong_penalty(len(each.token_ids), limit, soft) for each in episodes]
            scored = [
                replace(each, total=each.total - penalty, each={**each.each, "overlong": -penalty})
                for each, penalty in zip(scored, penalties, strict=True)
            ]
        return [
            Answer(
                each.number,
                Completion(
                    np.array(each.token_ids, dtype=np.int32),
                    np.array(each.logprobs, dtype=np.float32),
                    each.is_finished,
                ),
                np.array(each.is_drawn),
                text,
                each.turns,
                verdict,
            )
            for each, text, verdict in zip(episodes, texts, scored, strict=True)
        ]

    def _columns(self, episode: _Episode) -> dict[str, Any]:
        """What rewards get beside prompt and completion."""
        if episode.environment is None:
            return dict(episode.prompt.others)
        return {**episode.prompt.others, "environment": episode.environment, "turns": episode.turns}

    def _last_text(self, episode: _Episode) -> str:
        if episode.turns:
            return str(episode.turns[-1]["content"])
        return str(self.tokenizer.decode(episode.token_ids, skip_special_tokens=True))

    def _played(self, asked: Sequence[Prompt], rollout: int, attempt: int) -> Iterator[_Episode]:
        """This rank's episodes. Every rank calls the model as often as the others."""
        sampling = Sampling(
            temperature=self.rl.temperature,
            top_p=self.rl.top_p,
            num_tokens_max=self.rl.completion_tokens_max,
            stop_ids=stop_ids(self.model, self.tokenizer),
        )
        most = -(-len(asked) // self.backend.num_ranks)
        numbers = range(self.backend.rank, len(asked), self.backend.num_ranks)
        # A server makes its own batches.
        at_once = most if self.engine else self.rl.sequences_per_call
        for first in range(0, most, at_once):
            episodes = [
                _Episode(number, asked[number], self._environment(asked[number]))
                for number in numbers[first : first + at_once]
            ]
            for turn in range(self.turns_max):
                active = [each for each in episodes if not each.is_over]
                if turn and not self.backend.sum_over_ranks(float(len(active))):
                    break
                said = self._completions(
                    [each.so_far for each in active],
                    [seed_of(self.plan.seed, rollout, each.number, attempt=attempt, turn=turn) for each in active],
                    sampling,
                    filler=asked[0].token_ids,
                )
                for each, completion in zip(active, said, strict=True):
                    self._take(each, completion, is_last=turn + 1 == self.turns_max)
            yield from episodes

    def _completions(
        self,
        prompts: list[NDArray[np.int32]],
        seeds: list[int],
        sampling: Sampling,
        *,
        filler: NDArray[np.int32],
    ) -> list[Completion]:
        if self.engine is not None:
            return self.engine.complete(prompts, sampling=sampling, seeds=seeds)
        with self.backend.computing():
            drawn = generate(
                self.model,
                # A rank that has none left keeps in step with one that is thrown away.
                prompts or [filler],
                sampling=sampling,
                seeds=seeds or [0],
                device=self.backend.device,
                all_done=lambda done: self.backend.sum_over_ranks(float(done)) == self.backend.num_ranks,
            )
        return drawn[: len(prompts)]

    def _take(self, episode: _Episode, completion: Completion, *, is_last: bool) -> None:
        """Adds a turn of the model, and the reply to it if there is one and another turn has room after it."""
        episode.add(completion.token_ids.tolist(), completion.logprobs.tolist(), is_drawn=True)
        episode.num_turns += 1
        if episode.environment is None:
            episode.is_over, episode.is_finished = True, completion.is_finished
            return
        text = str(self.tokenizer.decode(completion.token_ids, skip_special_tokens=True))
        episode.turns.append({"role": "assistant", "content": text})
        if not completion.is_finished:
            episode.is_over = True
            return
        try:
            reply = episode.environment.respond(text)
        except Exception as error:
            raise self._failed(episode.prompt, error, f"of the completion {text[:200]!r}") from error
        if reply is None:
            episode.is_over = episode.is_finished = True
            return
        messages = [{"role": "user", "content": reply}] if isinstance(reply, str) else list(reply)
        ids = render_reply(
            self.tokenizer, messages, ended_by=int(completion.token_ids[-1]), is_chat=self.plan.data_kind == "chat"
        )
        room = self.plan.tokens_per_sample_max - len(episode.so_far) - len(ids)
        if is_last or room < self.rl.completion_tokens_max:
            episode.is_over = True
            return
        episode.add(ids, [0.0] * len(ids), is_drawn=False)
        episode.turns += messages

    def _environment(self, prompt: Prompt) -> Environment | None:
        if self.environment is None:
            return None
        try:
            return self.environment(prompt.given, **prompt.others)
        except Exception as error:
            raise self._failed(prompt, error, "when it was made") from error

    def _failed(self, prompt: Prompt, error: Exception, when: str) -> RewardError:
        return RewardError(
            prompt.where,
            got=f"the environment {self.rl.environment} raised {type(error).__name__}: {error}, {when}",
            expected="a reply, or None to end the episode",
            hint="have it reply to what it does not understand, so that the model can learn from that",
        )


def seed_of(*numbers: int, attempt: int = 0, turn: int = 0) -> int:
    """A seed for torch that depends on all of them; that of a first turn of a first attempt on the numbers alone."""
    # As a key: numbers are filled up with zeros, so that (1, 2) and (1, 2, 0) have one seed.
    key = (attempt, turn) if attempt or turn else ()
    return int(np.random.SeedSequence(numbers, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1))
