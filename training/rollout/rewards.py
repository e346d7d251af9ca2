"""Rewards: plain Python functions that say how good a completion is, named in the settings.

    def reward(prompt, completion, **columns) -> float

`prompt` is what the line of the data file has (a string, or a list of messages), `completion` the model's text,
`columns` the line's other keys. A function is named as `module:function` or `file.py:function`, a reward model by its
directory, with a weight in front where it is not 1: `0.5*checks.py:is_brief`. A function that is `async` is awaited
together with those of all completions. The reward of a completion is the weighted sum.

A reward that raises, or returns what is no finite number, either stops the run, by the name of its sample, or counts as
0 and is counted: a person decides, for both are right somewhere.
"""

import asyncio
import importlib
import importlib.util
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import ConfigError, RewardError


@dataclass(frozen=True)
class Reward:
    """A function and what it weighs."""

    name: str
    function: Callable[..., float | Awaitable[float]]
    weight: float


@dataclass(frozen=True)
class Answered:
    """A completion as rewards see it."""

    prompt: Any
    completion: str
    columns: Mapping[str, Any]
    where: str
    """The line of its prompt."""


@dataclass(frozen=True)
class Scored:
    """What the rewards said of one completion."""

    total: float
    """Weighted sum."""
    each: Mapping[str, float]
    """By name, unweighted."""
    num_errors: int
    """Rewards that raised and counted as 0."""


def load_rewards(
    specifications: Sequence[str], judge: Callable[[str], Callable[..., float | Awaitable[float]]]
) -> list[Reward]:
    """The functions that the settings name.

    Args:
        specifications: see the module's docstring.
        judge: makes a function of a reward model's directory.

    Raises:
        ConfigError: one cannot be found, or imported.
    """
    return [_load(each, judge) for each in specifications]


def _load(specification: str, judge: Callable[[str], Callable[..., float | Awaitable[float]]]) -> Reward:
    weight, star, named = specification.rpartition("*")
    try:
        scale = float(weight) if star else 1.0
        if Path(named).expanduser().is_dir():
            return Reward(named, judge(named), scale)
        return Reward(named, _function(named), scale)
    except Exception as error:
        raise ConfigError(
            "rl.rewards",
            got=f"{specification}, which cannot be loaded ({type(error).__name__}: {error})",
            expected="module:function, file.py:function or a directory, with weight* in front if it is not 1",
            hint="check the name; paths of files start where the command was typed",
        ) from error


def load_function(named: str, setting: str) -> Callable[..., Any]:
    """The function, or class, that a setting names as `module:function` or `file.py:function`.

    Raises:
        ConfigError: it cannot be found, or imported.
    """
    try:
        return _function(named)
    except Exception as error:
        raise ConfigError(
            setting,
            got=f"{named}, which cannot be loaded ({type(error).__name__}: {error})",
            expected="module:function or file.py:function",
            hint="check the name; paths of files start where the command was typed",
        ) from error


def _function(named: str) -> Callable[..., Any]:
    place, _, name = named.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).expanduser()
        spec = importlib.util.spec_from_file_location(f"rewards_of_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function: Callable[..., Any] = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is no function")
    return function


def score(rewards: Sequence[Reward], answered: Sequence[Answered], *, stops_at_error: bool) -> list[Scored]:
    """What the rewards say of each completion, in their order.

    Args:
        rewards: at least one.
        answered: the completions.
        stops_at_error: False counts a reward that raises as 0.

    Raises:
        RewardError: one raised, or returned what is no finite number, and that stops the run.
    """
    return asyncio.run(_score_all(rewards, answered, stops_at_error))


async def _score_all(rewards: Sequence[Reward], answered: Sequence[Answered], stops_at_error: bool) -> list[Scored]:
    values = await asyncio.gather(*(_score(reward, each, stops_at_error) for each in answered for reward in rewards))
    scored = []
    for number in range(len(answered)):
        row = values[number * len(rewards) : (number + 1) * len(rewards)]
        scored.append(
            Scored(
                total=sum(reward.weight * (value or 0.0) for reward, value in zip(rewards, row, strict=True)),
                each={reward.name: value or 0.0 for reward, value in zip(rewards, row, strict=True)},
                num_errors=sum(value is None for value in row),
            )
        )
    return scored


async def _score(reward: Reward, answered: Answered, stops_at_error: bool) -> float | None:
    """The reward, or None if there is none and that does not stop the run."""
    try:
        value = reward.function(answered.prompt, answered.completion, **answered.columns)
        number = float(await value if inspect.isawaitable(value) else value)
        if not math.isfinite(number):
            raise ValueError(f"it returned {number}")
    except Exception as error:
        if not stops_at_error:
            return None
        raise RewardError(
            answered.where,
            got=f"the reward {reward.name} raised {type(error).__name__}: {error}, of the completion "
            f"{answered.completion[:200]!r}",
            expected="a finite number",
            hint="correct the function or the line, or count such completions as 0 with --on-reward-error count",
        ) from error
    return number
