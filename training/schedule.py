"""What changes from step to step, as pure functions of the step number, so that resuming it takes no state.

The learning rate, by its shape:

With s steps taken before this one, N steps in all, W of them warm-up and D of them decay, and a floor of f:

    warm-up    s < W              peak · (s + 1) / (W + 1)
    constant                      peak
    linear     p = (s − W)/(N − W)          peak · (f + (1 − f) · (1 − p))
    cosine     p as above                   peak · (f + (1 − f) · (1 + cos πp) / 2)       arXiv 1608.03983, one cycle
    wsd        p = (s − (N − D))/D, from 0  peak · (f + (1 − f) · (1 − p))                arXiv 2404.06395, linear decay

Two ends of it are chosen so that no step is wasted: the first step of a warm-up already moves, and the floor is
reached where step N + 1 would be, since a last step at a floor of 0 would read a batch and change nothing.
"""

import math
from dataclasses import dataclass

from training.config import ScheduleShape


@dataclass(frozen=True)
class Schedule:
    """A shape with its numbers; what it means is in the module's docstring."""

    shape: ScheduleShape
    peak: float
    warmup_fraction: float
    decay_fraction: float
    floor_fraction: float

    def learning_rate(self, step: int, num_steps: int) -> float:
        """The rate of the step that has `step` steps before it, in a run of `num_steps`."""
        assert 0 <= step < num_steps, (step, num_steps)
        # A warm-up never takes the whole run: the last step, at least, is at the peak or on the way down.
        num_warmup = min(math.ceil(self.warmup_fraction * num_steps), num_steps - 1)
        if step < num_warmup:
            return self.peak * (step + 1) / (num_warmup + 1)
        if self.shape == "constant":
            return self.peak
        if self.shape == "wsd":
            num_decay = min(math.ceil(self.decay_fraction * num_steps), num_steps - num_warmup)
            stable_end = num_steps - num_decay
            progress = 0.0 if step <= stable_end else (step - stable_end) / num_decay
        else:
            progress = (step - num_warmup) / (num_steps - num_warmup)
        height = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.peak * (self.floor_fraction + (1 - self.floor_fraction) * height)


def in_a_line(first: float, last: float, step: int, num_steps: int) -> float:
    """What the step with `step` steps before it has, of something that is `first` in the first and `last` in the last.

    A run of one step has the first.
    """
    assert 0 <= step < num_steps, (step, num_steps)
    return first if num_steps == 1 else first + (last - first) * step / (num_steps - 1)
