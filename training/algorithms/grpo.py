"""The clipped policy gradient on sampled completions: GRPO (arXiv 2402.03300), and what DAPO and Dr. GRPO chose in it.

    ρ_t  = π(x_t) / π_old(x_t)
    l_t  = −c_t · min(ρ_t A_t, clip(ρ_t, 1 − ε_low, 1 + ε_high) A_t)  +  β · KL_t
    loss = Σ_t  w_t · l_t  /  divisor

Who is compared with whom is in the advantages A (`training.algorithms.advantages`), which are numbers by now. Apart
from them the algorithms differ in how long completions weigh:

    sequence   w_t = 1 / |completion|   divisor: completions   each completion counts alike         GRPO, eq. 3
    token      w_t = 1                  divisor: tokens        each token counts alike              DAPO, eq. 8
    constant   w_t = 1 / L              divisor: completions   no bias for length; L is the limit   Dr. GRPO, listing 1

so weights carry it into the batch, and the divisor stays one number of the global batch. DAPO's "clip higher" is
ε_high > ε_low. PPO's loss for the policy (`training.algorithms.ppo`) and RLOO's are the same formula with their own A.

c_t = min(π_old(x_t) / π_sampled(x_t), C) corrects for a sampler whose arithmetic is not that of training (the
truncation of IMPALA, arXiv 1802.01561, §4.1); 1 where none is asked for. DAPO and Dr. GRPO have no KL term: β is 0.

Columns: advantages_T, policy_logprobs_T (π_old), sampled_logprobs_T if C is given, reference_logprobs_T if β is not 0.

Shapes: T tokens of a microbatch, K of them that count.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from training.algorithms.algorithm import Logprobs, Weighed, WeightedTokens
from training.algorithms.kl import KlEstimator, kl_estimate

LengthNormalization = Literal["sequence", "token", "constant"]

POLICY, SAMPLED, REFERENCE = "policy_logprobs_T", "sampled_logprobs_T", "reference_logprobs_T"
ADVANTAGES = "advantages_T"


class Completions(WeightedTokens, Protocol):
    """The part of a microbatch that is looked at."""

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """Those of the module's docstring, float32 [T]; only where a weight is not 0 do they say anything."""
        ...


class Counted(Weighed, Protocol):
    """The part of a batch that a divisor looks at; counted over all ranks."""

    @property
    def num_samples(self) -> int:
        """Completions."""
        ...


def token_weight(num_tokens: int, normalization: LengthNormalization, num_tokens_max: int) -> float:
    """The weight of each token of a completion.

    Args:
        num_tokens: of the completion.
        normalization: as in the module's docstring.
        num_tokens_max: the most that any completion can have.
    """
    match normalization:
        case "sequence":
            return 1 / num_tokens
        case "token":
            return 1.0
        case "constant":
            return 1 / num_tokens_max


class Grpo:
    """The clipped policy gradient as the step sees it."""

    def __init__(
        self,
        *,
        clip_low: float,
        clip_high: float,
        normalization: LengthNormalization,
        kl_coefficient: float = 0.0,
        kl_estimator: KlEstimator = "k3",
        importance_max: float | None = None,
    ) -> None:
        """Says which of the formulas.

        Args:
            clip_low: ε_low.
            clip_high: ε_high.
            normalization: what the weights of the batch were made with; decides the divisor.
            kl_coefficient: β.
            kl_estimator: of the KL divergence from the reference.
            importance_max: C; None leaves c_t at 1.
        """
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.normalization = normalization
        self.kl_coefficient = kl_coefficient
        self.kl_estimator: KlEstimator = kl_estimator
        self.importance_max = importance_max

    def divisor(self, batch: Counted) -> float:
        """Tokens or completions of the global batch."""
        return batch.weight_sum if self.normalization == "token" else float(batch.num_samples)

    def loss_sum(self, logprobs: Logprobs, microbatch: Completions) -> tuple[Tensor, dict[str, float]]:
        """The sum of the module's docstring for one microbatch, and weighted sums of what describes it.

        These are `ratio`, `clip_fraction` (of tokens whose gradient the clip took away), `entropy` (estimated by the
        surprise at the drawn tokens), `kl_rollout` (of π_old from π, by k3), `weight` and, with β, `kl`.
        """
        next_K, weights_K, columns = counted(microbatch)
        loss_K, described = self.losses(logprobs(microbatch, next_K, None), columns)
        return weighted_sums(loss_K, described, weights_K)

    def losses(self, logprobs_K: Tensor, columns: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """l_K of the module's docstring, and by name what describes each token.

        Args:
            logprobs_K: of the policy, with their gradient.
            columns: those of the module's docstring, for the same tokens.
        """
        advantages_K = columns[ADVANTAGES]
        ratio_K = (logprobs_K - columns[POLICY]).exp()
        clipped_K = ratio_K.clamp(1 - self.clip_low, 1 + self.clip_high)
        gain_K = torch.minimum(ratio_K * advantages_K, clipped_K * advantages_K)
        is_clipped_K = clipped_K * advantages_K < ratio_K * advantages_K
        if self.importance_max is not None:
            gain_K = gain_K * (columns[POLICY] - columns[SAMPLED]).exp().clamp(max=self.importance_max)
        loss_K = -gain_K
        described = {
            "ratio": ratio_K.detach(),
            "clip_fraction": is_clipped_K.float(),
            "entropy": -logprobs_K.detach(),
            "kl_rollout": kl_estimate(columns[POLICY], logprobs_K.detach(), "k3"),
            "weight": torch.ones_like(advantages_K),
        }
        if self.kl_coefficient:
            kl_K = kl_estimate(logprobs_K, columns[REFERENCE], self.kl_estimator)
            loss_K = loss_K + self.kl_coefficient * kl_K
            described["kl"] = kl_K.detach()
        return loss_K, described


def counted(microbatch: Completions) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(next_K, weights_K, columns by name) of the tokens that count."""
    next_K = microbatch.weights_T[1:].nonzero().squeeze(1) + 1
    columns = {name: column[next_K] for name, column in microbatch.columns.items() if name.endswith("_T")}
    return next_K, microbatch.weights_T[next_K], columns


def weighted_sums(
    loss_K: Tensor, described: Mapping[str, Tensor], weights_K: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """What a step asks an algorithm for: the sum of a loss, and sums of what describes it, by the tokens' weights."""
    return torch.dot(loss_K, weights_K), {name: torch.dot(each, weights_K).item() for name, each in described.items()}
