"""Advantages of whole completions: how much better each did than the others that answered the same prompt.

    group   A_i = r_i − mean(r)                 divided by std(r) + 1e-4 if asked    GRPO, arXiv 2402.03300, §4.1.2
    rloo    A_i = r_i − mean of the others      = N / (N − 1) · (r_i − mean(r))      RLOO, arXiv 2402.14740

Both are 0 in sum over a group. Dividing by the standard deviation weighs easy and hard prompts up against those in
between (Dr. GRPO, arXiv 2503.20783, leaves it out). The deviation is that of a sample, with N − 1.

Shapes: P prompts, N completions of each.
"""

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to a standard deviation, so that a group of equal rewards has advantages of 0 and not of 0 / 0."""


def group_advantages(rewards_PN: Tensor, *, divide_by_std: bool) -> Tensor:
    """advantages_PN: rewards around the mean of their group.

    Args:
        rewards_PN: a row for each prompt, at least two in it.
        divide_by_std: also give each group the same spread.
    """
    centred_PN = rewards_PN - rewards_PN.mean(dim=1, keepdim=True)
    return centred_PN / (rewards_PN.std(dim=1, keepdim=True) + STD_FLOOR) if divide_by_std else centred_PN


def rloo_advantages(rewards_PN: Tensor) -> Tensor:
    """advantages_PN: each reward less the mean of the others in its group, at least one.

    A baseline that does not depend on the completion, so that the gradient has no bias.
    """
    num = rewards_PN.shape[1]
    others_PN = (rewards_PN.sum(dim=1, keepdim=True) - rewards_PN) / (num - 1)
    return rewards_PN - others_PN


def overlong_penalty(num_tokens: int, num_tokens_max: int, overlong_tokens: int) -> float:
    """What is taken off the reward of a completion: 0, rising to 1 over its last tokens (DAPO, arXiv 2503.14476, 13).

    Args:
        num_tokens: of the completion.
        num_tokens_max: where completions are cut off.
        overlong_tokens: over how many before that it rises.
    """
    return max(0.0, (num_tokens - num_tokens_max + overlong_tokens) / overlong_tokens)


def gae(rewards_T: Tensor, values_T: Tensor, *, discount: float, decay: float) -> Tensor:
    """advantages_T of the tokens of one completion, which ends there (GAE, arXiv 1506.02438, eq. 16).

    Of several in rows, if the shorter are filled up with zeros at their ends.

        δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γ λ A_{t+1}        V and A after the last token are 0

    Args:
        rewards_T: of each token; of a completion judged as a whole, 0 but for the last.
        values_T: what a critic expected before each token.
        discount: γ.
        decay: λ; 0 trusts the critic alone, 1 the rewards alone.
    """
    advantages = []
    advantage = value_after = torch.zeros_like(values_T[..., 0])
    for reward, value in zip(reversed(rewards_T.unbind(-1)), reversed(values_T.unbind(-1)), strict=True):
        advantage = reward + discount * value_after - value + discount * decay * advantage
        value_after = value
        advantages.append(advantage)
    return torch.stack(advantages[::-1], dim=-1)
