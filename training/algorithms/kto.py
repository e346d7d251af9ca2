"""Learning from single completions that are good or bad (KTO, arXiv 2402.01306, equations 7 and 8).

    r = s(y|x) − s_ref(y|x)                          s: sum of log-probabilities of the completion
    z = max(0, s(y'|x) − s_ref(y'|x))                y' answers another prompt; no gradient goes through it
    loss = λ⁺ (1 − σ(β (r − z))) if y is good,  λ⁻ (1 − σ(β (z − r))) if it is bad

z estimates how far the model has moved from the reference. The paper's (7) is max(0, mean) over the samples of a batch
that are on one device, so that a loss depends on how samples were packed and shared; here each sample has an estimate
of its own, from one completion of another. It is the same on any number of ranks, noisier, and too large: max(0, ·) of
each is never less in the mean than max(0, ·) of the mean, and more wherever some are below 0. A good completion then
counts as less good and a bad one as worse, and a run that stays near its reference has a z that the paper would call 0.

A sample is one example of two documents: its own completion first, then the other's. The loss is a sum over samples.

Shapes: T tokens of a microbatch, D documents in it, S samples.
"""

import torch
from torch import Tensor

from training.algorithms.algorithm import Logprobs
from training.algorithms.preference import REFERENCE, Counted, Documents, document_logprobs
from training.config import KtoSettings

DESIRABLE = "desirable_D"
"""The column that is 1 for a good completion and 0 for a bad one."""


class Kto:
    """The loss of the module's docstring, as the step sees it."""

    def __init__(self, settings: KtoSettings) -> None:
        """Takes beta and the two weights."""
        self.settings = settings

    def divisor(self, batch: Counted) -> float:
        """The number of samples in the global batch."""
        return batch.num_samples

    def loss_sum(self, logprobs: Logprobs, microbatch: Documents) -> tuple[Tensor, dict[str, float]]:
        """The sum over the samples of one microbatch, and sums of what the policy makes of them.

        `reward_accuracy` counts completions on the right side of z, `kl` adds up z.
        """
        s_D, length_D = document_logprobs(logprobs, microbatch)
        counts_S = (length_D.view(-1, 2) > 0).all(1)
        moved_S2 = (s_D - microbatch.columns[REFERENCE]).view(-1, 2)[counts_S]
        is_good_S = microbatch.columns[DESIRABLE].view(-1, 2)[counts_S, 0] > 0
        z_S = moved_S2[:, 1].detach().clamp_min(0.0)
        sign_S = torch.where(is_good_S, 1.0, -1.0)
        weight_S = torch.where(is_good_S, self.settings.desirable_weight, self.settings.undesirable_weight)
        reward_S = self.settings.beta * (moved_S2[:, 0] - z_S)
        loss = (weight_S * torch.sigmoid(-sign_S * reward_S)).sum()
        signed_S = sign_S * reward_S.detach()
        return loss, {
            "reward_signed": signed_S.sum().item(),
            "reward_accuracy": (signed_S > 0).sum().item(),
            "kl": z_S.sum().item(),
        }
