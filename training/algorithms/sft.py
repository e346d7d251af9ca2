"""Supervised fine-tuning: the weighted sum of each token's surprise, given those before it.

    loss = Σ_t  w_t · −log p(x_t | x_<t)   /   Σ_t w_t

Only the numerator is formed here. The divisor is counted over the global batch and applied once, by the step: a mean of
per-microbatch means would weigh the tokens of short microbatches more, and depend on how many ranks ran.

Shapes: T tokens of a microbatch, K of them that count.
"""

import torch
from torch import Tensor

from training.algorithms.algorithm import Logprobs, Weighed, WeightedTokens


class Sft:
    """Supervised fine-tuning as the step sees it."""

    def divisor(self, batch: Weighed) -> float:
        """The sum of weights over the global batch."""
        return batch.weight_sum

    def loss_sum(self, logprobs: Logprobs, microbatch: WeightedTokens) -> tuple[Tensor, dict[str, float]]:
        """The sum of the module's docstring for one microbatch; no further metrics.

        Asks only for tokens that count. The first has no predictor and counts as if its weight were 0, as every
        document's start must be.
        """
        next_K = microbatch.weights_T[1:].nonzero().squeeze(1) + 1
        weights_K = microbatch.weights_T[next_K]
        return -torch.dot(logprobs(microbatch, next_K, weights_K), weights_K), {}
