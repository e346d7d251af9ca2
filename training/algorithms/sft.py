"""Supervised fine-tuning: the weighted sum of each token's surprise, given those before it.

    loss = Σ_t  w_t · −log p(x_t | x_<t)   /   Σ_t w_t

Only the numerator is formed here. The divisor is counted over the global batch and applied once, by the step: a mean of
per-microbatch means would weigh the tokens of short microbatches more, and depend on how many ranks ran.

Shapes: T tokens of a microbatch, K of them that count, V vocabulary.
"""

import torch
from torch import Tensor

from training.algorithms.algorithm import Logits, Weighed, WeightedTokens


def loss_sum(logits_TV: Tensor, token_ids_T: Tensor, weights_T: Tensor) -> Tensor:
    """Σ w_t · −log p(x_t), a scalar, in float32 whatever the logits are in.

    The shift is here: `logits_TV[t - 1]` predicts `token_ids_T[t]`, whose weight is `weights_T[t]`. Position 0 has no
    predictor and counts as if its weight were 0, as every document's start must be.
    """
    return _surprise_sum(logits_TV[:-1], token_ids_T[1:], weights_T[1:])


def _surprise_sum(logits_KV: Tensor, targets_K: Tensor, weights_K: Tensor) -> Tensor:
    surprise_K = torch.nn.functional.cross_entropy(logits_KV.float(), targets_K, reduction="none")
    return torch.dot(surprise_K, weights_K.float())


class Sft:
    """Supervised fine-tuning as the step sees it."""

    def divisor(self, batch: Weighed) -> float:
        """The sum of weights over the global batch."""
        return batch.weight_sum

    def loss_sum(self, logits: Logits, microbatch: WeightedTokens) -> tuple[Tensor, dict[str, float]]:
        """The sum of the module's docstring for one microbatch; no further metrics.

        Logits are asked for only where the next token counts. Chats often learn a third of their tokens, and scores
        over the vocabulary are the largest tensor of a step.
        """
        next_K = microbatch.weights_T[1:].nonzero().squeeze(1) + 1
        logits_KV = logits(microbatch, next_K - 1)
        return _surprise_sum(logits_KV, microbatch.token_ids_T[next_K], microbatch.weights_T[next_K]), {}
