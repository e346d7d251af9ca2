"""Learning what people prefer as one number for each completion: a reward model, by Bradley and Terry.

    loss = −log σ(r(x, y⁺) − r(x, y⁻) − m)         arXiv 2009.01325 (§3.4); the margin m: arXiv 2307.09288 (2)

r is what a value head says after the last token of the document, template and all. m is by how much more y⁺ is worth,
where somebody has said so, and 0 where not.

A pair is one example of two documents, chosen first. The loss is a sum over pairs; the step divides by their number.
What it is given is the model's `values`, where other algorithms get log-probabilities.

Shapes: D documents of a microbatch, P pairs.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.algorithms.algorithm import Logprobs
from training.algorithms.preference import Counted, Documents

MARGIN = "margin_D"
"""The column with m of each pair, on both of its documents."""


class BradleyTerry:
    """The loss of the module's docstring, as the step sees it."""

    def divisor(self, batch: Counted) -> float:
        """The number of pairs in the global batch."""
        return batch.num_samples

    def loss_sum(self, values: Logprobs, microbatch: Documents) -> tuple[Tensor, dict[str, float]]:
        """The sum over the pairs of one microbatch, and sums of rewards. A filler has no pair that counts."""
        starts_D1 = microbatch.document_starts_D1.to(microbatch.weights_T.device).long()
        rewards_P2 = values(microbatch, starts_D1[1:] - 1, None).view(-1, 2)
        lengths = starts_D1.diff().tolist()
        is_pair_P = (
            torch.stack([each.any() for each in microbatch.weights_T.split_with_sizes(lengths)]).view(-1, 2).all(1)
        )
        margin_P = microbatch.columns[MARGIN].view(-1, 2)[:, 0]
        ahead_P = (rewards_P2[:, 0] - rewards_P2[:, 1])[is_pair_P]
        loss = -logsigmoid(ahead_P - margin_P[is_pair_P]).sum()
        chosen, rejected = rewards_P2.detach()[is_pair_P].sum(0).tolist()
        return loss, {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "reward_margin": chosen - rejected,
            "reward_accuracy": (ahead_P > 0).sum().item(),
        }
