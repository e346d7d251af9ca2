"""When is a result another one than the baseline's? The statistical rule, and where its numbers come from.

A baseline holds the values x_1 … x_n of one metric for n seeds, a new result y_1 … y_m for m seeds. If nothing has
changed, both are draws from one distribution, and under normality

    (ȳ − x̄)  /  ( s · √(1/n + 1/m) )    has Student's t distribution with n − 1 degrees of freedom,

s being the standard deviation of the x. So ȳ must lie within

    x̄  ±  WIDENED · t(CONFIDENCE, n − 1) · max(s, resolution) · √(1/n + 1/m)

- CONFIDENCE is 99 %, not 95, because a run of the tier makes about fifteen comparisons.
- WIDENED is 1.5, because a handful of seeds near an upper bound is not normal, and because another processor sums in
  another order: that alone makes another draw of every seed. With five seeds against three, a mean may move by five
  standard deviations of a seed; a planted fault moves it by tens.
- `resolution` is a standard deviation below which a metric is not known: five seeds that all get 200 of 200 problems
  right do not show that 199 is impossible.

A result outside is refused in both directions: a figure that is suddenly better has a reason too, and it may be that
held-out problems got into the training data. Standard library only.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99
WIDENED = 1.5

HIGHER_IS_BETTER = {
    "exact_match": True,
    "pass_at_4": True,
    "win_rate": True,
    "perplexity": False,
    "calibration_error": False,
    "pairs_right": True,
    "reward_margin": True,
    "pair_surprise": False,
}

RESOLUTION = {"perplexity": 0.002, "calibration_error": 0.002, "reward_margin": 0.2, "pair_surprise": 0.005}
"""The least standard deviation that is believed; RESOLUTION_OF_SHARES for the others, which count problems."""

RESOLUTION_OF_SHARES = 0.005
"""One problem of two hundred."""


def t_quantile(confidence: float, degrees: int) -> float:
    """Half the width, in standard errors, of the two-sided interval of Student's t distribution."""
    assert 0.0 < confidence < 1.0
    assert degrees >= 1
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, degrees: int) -> float:
    """P(|T| < t), by the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = 1.0 if degrees % 2 == 0 else cosine
    for n in range(1 if degrees % 2 == 0 else 2, degrees - 2, 2):
        term *= cosine * cosine * n / (n + 1)
        total += term
    if degrees % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a seed, estimated from several."""
    return statistics.stdev(values)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of the mean over seeds, as a table of results should state it."""
    half = t_quantile(confidence, len(values) - 1) * spread(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


@dataclass(frozen=True)
class Comparison:
    """One metric, held against its baseline."""

    metric: str
    baseline: float
    found: float
    tolerance: float
    """How far from the baseline's mean the new one may lie."""

    @property
    def holds(self) -> bool:
        """True if the two can be one distribution's."""
        return abs(self.found - self.baseline) <= self.tolerance

    @property
    def word(self) -> str:
        """`as before`, `worse` or `better`."""
        if self.holds:
            return "as before"
        return "better" if (self.found > self.baseline) == HIGHER_IS_BETTER[self.metric] else "worse"

    def __str__(self) -> str:
        """A line of a table."""
        return f"{self.metric:<18} {self.baseline:10.4f} → {self.found:10.4f}  ± {self.tolerance:.4f}  {self.word}"


def compare(metric: str, baseline: Sequence[float], found: Sequence[float]) -> Comparison:
    """The rule of the module's docstring; a baseline of fewer than two seeds has no spread to go by."""
    assert len(baseline) >= 2, f"{metric}: a baseline needs two seeds or more"
    assert found, f"{metric}: nothing was measured"
    deviation = max(spread(baseline), RESOLUTION.get(metric, RESOLUTION_OF_SHARES))
    error = deviation * math.sqrt(1 / len(baseline) + 1 / len(found))
    return Comparison(
        metric,
        statistics.fmean(baseline),
        statistics.fmean(found),
        WIDENED * t_quantile(CONFIDENCE, len(baseline) - 1) * error,
    )
