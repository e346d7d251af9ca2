"""Which of its tokens a completion owes its reward to: the advantages of a rollout.

    groups   each token of a completion has the advantage of the whole, by the rewards of its group
    critic   r_t = −β · KL_t, and the completion's reward at its last token        arXiv 2203.02155 (2)
             A_t = gae(r, V),  R_t = A_t + V_t,  and then A ← (A − mean(A)) / (std(A) + 1e-4) over the rollout's tokens

Everything here is a number that was computed before: nothing has a gradient, and every rank computes the same.

Shapes: B completions, S tokens of the longest, P prompts with N completions each.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.algorithms.advantages import STD_FLOOR, gae, group_advantages, rloo_advantages
from training.algorithms.grpo import ADVANTAGES, POLICY, REFERENCE
from training.algorithms.kl import kl_estimate
from training.algorithms.ppo import OLD_VALUES, RETURNS
from training.config import PpoSettings, RlConfig
from training.data.example import Example

VARIANCE_FLOOR = 1e-8
"""Below which returns are all alike, and there is nothing to explain."""


def credit(
    rl: RlConfig | PpoSettings, examples: Sequence[Example], rewards: Sequence[float]
) -> tuple[list[Example], dict[str, float]]:
    """The examples with their advantages, and what there is to say of them.

    Args:
        rl: says who a completion is compared with.
        examples: completions after their prompts, the groups one after another; with the columns of their scores.
        rewards: of each.
    """
    if isinstance(rl, PpoSettings):
        return _by_critic(rl, examples, rewards)
    return _by_group(rl, examples, torch.tensor(rewards).view(-1, rl.group_size))


def _by_group(rl: RlConfig, examples: Sequence[Example], rewards_PN: Tensor) -> tuple[list[Example], dict[str, float]]:
    if rl.advantage == "rloo":
        advantages_PN = rloo_advantages(rewards_PN)
    else:
        advantages_PN = group_advantages(rewards_PN, divide_by_std=bool(rl.divide_by_std))
    filled = [
        _with(each, {ADVANTAGES: np.full(np.count_nonzero(each.weights), advantage)})
        for each, advantage in zip(examples, advantages_PN.flatten().tolist(), strict=True)
    ]
    is_uniform_P = (rewards_PN == rewards_PN[:, :1]).all(1)
    return filled, {"uniform_groups_fraction": is_uniform_P.float().mean().item()}


def _by_critic(
    rl: PpoSettings, examples: Sequence[Example], rewards: Sequence[float]
) -> tuple[list[Example], dict[str, float]]:
    lengths = [int(np.count_nonzero(each.weights)) for each in examples]
    counts_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    values_BS = _padded(examples, OLD_VALUES)
    rewards_BS = torch.zeros_like(values_BS)
    metrics = {}
    if rl.kl_coefficient:
        assert rl.kl_estimator != "auto"
        kl_BS = kl_estimate(_padded(examples, POLICY), _padded(examples, REFERENCE), rl.kl_estimator)
        rewards_BS -= rl.kl_coefficient * kl_BS
        metrics["kl"] = kl_BS[counts_BS].mean().item()
    rewards_BS[torch.arange(len(lengths)), torch.tensor(lengths) - 1] += torch.tensor(rewards, dtype=torch.float64)
    advantages_BS = gae(rewards_BS, values_BS, discount=rl.discount, decay=rl.gae_decay)
    returns_BS = advantages_BS + values_BS
    if rl.whiten_advantages:
        here = advantages_BS[counts_BS]
        advantages_BS = (advantages_BS - here.mean()) / (here.std(correction=0) + STD_FLOOR)
    values, returns = values_BS[counts_BS], returns_BS[counts_BS]
    unexplained = (returns - values).var(correction=0) / returns.var(correction=0).clamp_min(VARIANCE_FLOOR)
    metrics |= {
        "value_mean": values.mean().item(),
        "return_mean": returns.mean().item(),
        "explained_variance": 1 - unexplained.item(),
    }
    filled = [
        _with(each, {ADVANTAGES: advantages[:num].numpy(), RETURNS: returns[:num].numpy()})
        for each, num, advantages, returns in zip(examples, lengths, advantages_BS, returns_BS, strict=True)
    ]
    return filled, metrics


def _padded(examples: Sequence[Example], name: str) -> Tensor:
    """column_BS of the completions' tokens, in float64, with zeros at the ends of the shorter."""
    columns = [torch.from_numpy(each.columns[name][each.weights > 0].astype(np.float64)) for each in examples]
    return pad_sequence(columns, batch_first=True)


def _with(example: Example, columns: dict[str, NDArray[np.floating]]) -> Example:
    """The example with further columns, which are given for its completion alone."""
    whole = {}
    for name, values in columns.items():
        whole[name] = np.zeros(len(example), dtype=np.float32)
        whole[name][example.weights > 0] = values
    return replace(example, columns={**example.columns, **whole})
