"""Estimates of KL(policy ‖ reference) from tokens that the policy has drawn (Schulman 2020, "Approximating KL").

With log ρ = log reference(x_t) − log policy(x_t):

    k1 = −log ρ               no bias, much noise, can be negative; its own gradient is 0 in the mean
    k2 = (log ρ)² / 2         little bias, little noise
    k3 = ρ − 1 − log ρ        no bias, never negative: what GRPO takes (arXiv 2402.03300, eq. 4)

Shapes: K tokens.
"""

from typing import Literal

from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs_K: Tensor, reference_logprobs_K: Tensor, estimator: KlEstimator) -> Tensor:
    """kl_K: an estimate at each token, in nats.

    Args:
        logprobs_K: of the policy.
        reference_logprobs_K: of the reference, for the same tokens.
        estimator: which of the three.
    """
    log_ratio_K = reference_logprobs_K - logprobs_K
    match estimator:
        case "k1":
            return -log_ratio_K
        case "k2":
            return log_ratio_K.square() / 2
        case "k3":
            return log_ratio_K.expm1() - log_ratio_K
