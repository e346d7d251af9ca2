"""Proximal policy optimization with a critic (arXiv 1707.06347), of language models (arXiv 2203.02155).

    l_t  = l_t of the policy  +  c · ½ max( (V_t − R_t)², (V_old_t + clip(V_t − V_old_t, −ε, ε) − R_t)² )
    loss = Σ_t  w_t · l_t  /  divisor

The policy's part, its weights and the divisor are those of `training.algorithms.grpo`, the critic's those of
`training.algorithms.value`; c is the coefficient. A_t is by token here, from `training.algorithms.advantages.gae`, and
R_t = A_t + V_old_t: both are numbers by now, made when the completions were drawn, and no gradient goes through them.

The divergence from the reference is part of the rewards, token by token, as in arXiv 2203.02155 (2), so the policy's β
is 0.

Columns: those of the policy's part, old_values_T (V_old), returns_T (R).
"""

import math

from torch import Tensor

from training.algorithms.algorithm import Logprobs
from training.algorithms.grpo import Completions, Counted, Grpo, counted, weighted_sums
from training.algorithms.value import value_loss

OLD_VALUES, RETURNS = "old_values_T", "returns_T"


class Ppo:
    """The loss of the module's docstring, as the step sees it."""

    def __init__(self, policy: Grpo, *, value_coefficient: float, value_clip: float | None) -> None:
        """Says which of the formulas.

        Args:
            policy: the policy's part.
            value_coefficient: c.
            value_clip: ε; None lets the critic move as far as it likes.
        """
        self.policy = policy
        self.value_coefficient = value_coefficient
        self.value_clip = math.inf if value_clip is None else value_clip

    def divisor(self, batch: Counted) -> float:
        """That of the policy's part."""
        return self.policy.divisor(batch)

    def loss_sum(self, answers: Logprobs, microbatch: Completions) -> tuple[Tensor, dict[str, float]]:
        """The sum of the module's docstring for one microbatch, and sums as the policy's part has them.

        `value_loss` is the critic's part without its coefficient, `value_clip_fraction` counts tokens whose value has
        moved as far as it may.

        Args:
            answers: as log-probabilities are asked for, but [K, 2]: beside each its value.
            microbatch: completions with the columns.
        """
        next_K, weights_K, columns = counted(microbatch)
        logprobs_K, values_K = answers(microbatch, next_K, None).unbind(1)
        loss_K, described = self.policy.losses(logprobs_K, columns)
        critic_K = value_loss(values_K, columns[OLD_VALUES], columns[RETURNS], clip=self.value_clip)
        described["value_loss"] = critic_K.detach()
        described["value_clip_fraction"] = ((values_K - columns[OLD_VALUES]).abs() > self.value_clip).float()
        return weighted_sums(loss_K + self.value_coefficient * critic_K, described, weights_K)
