"""Learning from pairs of which one completion was chosen over the other.

Of a pair with prompt x, chosen completion y⁺ and rejected completion y⁻, with s(y) = Σ_t log p(y_t | x, y_<t):

    δ = s(y⁺) − s(y⁻) − (s_ref(y⁺) − s_ref(y⁻))                                  each s over |y| if length-normalized
    sigmoid    −(1−ε) log σ(βδ) − ε log σ(−βδ)                                   DPO, arXiv 2305.18290 (7); ε: its 3
    robust     (−(1−ε) log σ(βδ) + ε log σ(−βδ)) / (1 − 2ε)                      arXiv 2403.00409 (11)
    ipo        (δ − 1/(2β))²                                                     arXiv 2310.12036 (17)
    hinge      max(0, 1 − βδ)                                                    arXiv 2309.06657 (10)
    apo_zero   1 − σ(βδ⁺) + σ(βδ⁻),  δ^± = s(y^±) − s_ref(y^±)                   arXiv 2408.06266, plus 1
    simpo      −log σ(β s(y⁺)/|y⁺| − β s(y⁻)/|y⁻| − γ)                           arXiv 2405.14734 (6)
    orpo       −a⁺ − λ log σ(log odds(a⁺) − log odds(a⁻)),  a = s(y)/|y|         arXiv 2403.07691 (6, 7)
               log odds(a) = a − log(1 − exp a)

β may change from step to step: then the batch has it in a column.

The last two need no reference. ORPO's first term is the surprise at the chosen completion, without the prompt. IPO is
the paper's, of sums; TRL divides by lengths, which `length_normalized` does here.

A pair is one example of two documents, chosen first. The loss is a sum over pairs; the step divides by their number. A
filler, whose tokens have no weight, has no pair that counts.

Shapes: T tokens of a microbatch, D documents in it, P pairs, K tokens that count.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from training.algorithms.algorithm import Logprobs, WeightedTokens
from training.config import PreferenceConfig

REFERENCE = "reference_logprob_D"
"""The column with s_ref of each document."""
BETA = "beta_D"
"""The column with β of the step, if it changes; the same for all documents."""


class Counted(Protocol):
    """The part of a batch that a mean over samples looks at; counted over all ranks."""

    @property
    def num_samples(self) -> int:
        """Samples of the batch."""
        ...


class Documents(WeightedTokens, Protocol):
    """The part of a microbatch that a loss of documents looks at."""

    @property
    def document_starts_D1(self) -> Tensor:  # noqa: N802 - tensors end in their shape, as properties too
        """int32 [0, …, T], on the CPU."""
        ...

    @property
    def columns(self) -> Any:
        """Tensors by name."""
        ...


def document_logprobs(logprobs: Logprobs, microbatch: Documents) -> tuple[Tensor, Tensor]:
    """(s_D, length_D): the weighted sum of log-probabilities of each document, and the sum of its weights.

    Added up a document at a time, in an order that no other document changes.
    """
    next_K = microbatch.weights_T[1:].nonzero().squeeze(1) + 1
    weights_K = microbatch.weights_T[next_K]
    counts = torch.searchsorted(next_K.cpu(), microbatch.document_starts_D1.long()).diff().tolist()
    sums_K = logprobs(microbatch, next_K, None) * weights_K
    return (
        torch.stack([each.sum() for each in sums_K.split_with_sizes(counts)]),
        torch.stack([each.sum() for each in weights_K.split_with_sizes(counts)]),
    )


class Preference:
    """Each loss of the module's docstring, as the step sees it."""

    def __init__(self, settings: PreferenceConfig) -> None:
        """Takes settings in which the plan has left nothing open that the loss needs."""
        self.settings = settings

    def divisor(self, batch: Counted) -> float:
        """The number of pairs in the global batch."""
        return batch.num_samples

    def loss_sum(self, logprobs: Logprobs, microbatch: Documents) -> tuple[Tensor, dict[str, float]]:
        """The sum over the pairs of one microbatch, and sums of rewards: β (s − s_ref), by which the policy judges."""
        s_D, length_D = document_logprobs(logprobs, microbatch)
        length_P2 = length_D.view(-1, 2)
        counts_P = (length_P2 > 0).all(1)
        s_P2, length_P2 = s_D.view(-1, 2)[counts_P], length_P2[counts_P]
        if self.settings.loss in ("orpo", "simpo"):
            scores_P2 = s_P2 / length_P2
        else:
            scores_P2 = s_P2 - microbatch.columns[REFERENCE].view(-1, 2)[counts_P]
            if self.settings.length_normalized:
                scores_P2 = scores_P2 / length_P2
        beta_P: Tensor | None = None
        if self.settings.beta_end is not None:
            beta_P = microbatch.columns[BETA].view(-1, 2)[counts_P, 0]
        factor = self.settings.odds_weight if self.settings.loss == "orpo" else self.settings.beta
        assert factor is not None
        rewards_P2 = scores_P2.detach() * (factor if beta_P is None else beta_P[:, None])
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        return pair_losses(scores_P2, self.settings, beta_P).sum(), {
            "reward_chosen": rewards_P2[:, 0].sum().item(),
            "reward_rejected": rewards_P2[:, 1].sum().item(),
            "reward_margin": margin_P.sum().item(),
            "reward_accuracy": (margin_P > 0).sum().item(),
            "logprob_chosen": s_P2[:, 0].sum().item(),
            "logprob_rejected": s_P2[:, 1].sum().item(),
            **({} if beta_P is None else {"beta": beta_P.sum().item()}),
        }


def pair_losses(scores_P2: Tensor, settings: PreferenceConfig, beta_P: Tensor | None = None) -> Tensor:
    """losses_P from the scores of chosen and rejected: s − s_ref, or s over length for the losses without reference.

    Args:
        scores_P2: with their gradient.
        settings: which loss, and its numbers.
        beta_P: β of each pair, in place of that of the settings.
    """
    delta_P = scores_P2[:, 0] - scores_P2[:, 1]
    if settings.loss == "orpo":
        assert settings.odds_weight is not None
        odds_P2 = scores_P2 - torch.log(-torch.expm1(scores_P2))
        return -scores_P2[:, 0] - settings.odds_weight * logsigmoid(odds_P2[:, 0] - odds_P2[:, 1])
    beta = settings.beta if beta_P is None else beta_P
    assert beta is not None
    h_P = beta * delta_P
    if settings.loss == "ipo":
        return (delta_P - 1 / (2 * beta)).square()
    if settings.loss == "hinge":
        return torch.relu(1 - h_P)
    if settings.loss == "simpo":
        assert settings.target_margin is not None
        return -logsigmoid(h_P - settings.target_margin)
    if settings.loss == "apo_zero":
        return 1 - torch.sigmoid(beta * scores_P2[:, 0]) + torch.sigmoid(beta * scores_P2[:, 1])
    smoothing = settings.label_smoothing
    assert smoothing is not None
    if settings.loss == "robust":
        return (-(1 - smoothing) * logsigmoid(h_P) + smoothing * logsigmoid(-h_P)) / (1 - 2 * smoothing)
    return -(1 - smoothing) * logsigmoid(h_P) - smoothing * logsigmoid(-h_P)
