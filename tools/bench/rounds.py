"""Measuring side by side: whose turn it is, what the figures of all rounds come to, and on what machine.

On a shared machine only what was measured next to each other can be compared, so a ratio is taken within a round and
never between the best of one contender and the best of another.
"""

import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the greatest of the same figure over all rounds."""

    min: float
    median: float
    max: float


def turns(contenders: Sequence[str], *, num_rounds: int) -> Iterator[tuple[int, str]]:
    """Each round's number and whose turn it is; round 0 warms up and is not counted.

    Every second round goes backwards: what gets slower or faster all the while is then nobody's advantage.
    """
    for round_number in range(num_rounds + 1):
        for contender in contenders if round_number % 2 == 0 else reversed(contenders):
            yield round_number, contender


def spread(values: Sequence[float]) -> Spread:
    """The spread of one contender's figures; raises ValueError if there are none."""
    return Spread(min(values), statistics.median(values), max(values))


def ratios(values: Sequence[float], against: Sequence[float]) -> list[float]:
    """Round by round, the figure of one contender over the other's; raises ValueError where a round lacks one."""
    return [value / other for value, other in zip(values, against, strict=True)]


def machine() -> dict[str, Any]:
    """What the figures depend on, beside the versions."""
    cpuinfo = Path("/proc/cpuinfo")
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version()}
