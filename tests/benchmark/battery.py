"""The metrics of the battery, each from plain numbers, so that each can be worked by hand.

Higher is better for exact match, pass@k and win rate; lower for perplexity and calibration error. Standard library
only.
"""

import math
from collections.abc import Sequence

NUM_BINS = 15


def exact_match(scores: Sequence[float]) -> float:
    """Share of the problems whose verifier gave full marks: a score of 1."""
    assert scores
    return sum(score >= 1.0 for score in scores) / len(scores)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Chance that at least one of k answers to a problem is right, judged from n samples of which c are.

        pass@k  =  1 − C(n − c, k) / C(n, k)

    arXiv 2107.03374, equation 1: without bias, unlike 1 − (1 − c / n)^k, which draws the k with replacement. The mean
    over problems is the figure that is reported.
    """
    assert 0 <= num_right <= num_samples, (num_right, num_samples)
    assert 1 <= k <= num_samples, (k, num_samples)
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def perplexity(surprises: Sequence[float]) -> float:
    """Exp of the mean of −log p over all answer tokens, in nats: how many tokens the model is undecided between."""
    assert surprises
    return math.exp(math.fsum(surprises) / len(surprises))


def calibration_error(confidences: Sequence[float], is_right: Sequence[bool], *, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: how far the model's confidence is from how often it is right.

        ECE  =  Σ_b  n_b / N · | share right in b − mean confidence in b |

    over bins of equal width (arXiv 1706.04599, equation 3). A prediction here is the likeliest next token, given the
    true ones before it; its confidence is its probability. Bin b holds confidences above (b − 1) / B and up to b / B.
    """
    assert len(confidences) == len(is_right) > 0
    bins: dict[int, list[float]] = {}
    for confidence, right in zip(confidences, is_right, strict=True):
        at = min(max(math.ceil(confidence * num_bins), 1), num_bins)
        bins.setdefault(at, []).append(right - confidence)
    return math.fsum(abs(math.fsum(gaps)) for gaps in bins.values()) / len(confidences)


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of the problems on which our score is higher than theirs; a tie counts half.

    What a score is, the task says: its verifier's mark for the greedy answer, or, where nothing can verify, the mean
    log likelihood per token of the held-out answer.
    """
    assert len(ours) == len(theirs) > 0
    return sum(0.5 if one == other else float(one > other) for one, other in zip(ours, theirs, strict=True)) / len(ours)
