"""The optimizers to choose from, each over the weights that are trained.

    adamw       m ← β₁ m + (1 − β₁) g    v ← β₂ v + (1 − β₂) g²    θ ← θ − η (m̂ / (√v̂ + ε) + λ θ)
                arXiv 1711.05101
    adamw_8bit  the same, m and v in 8 bits: a code for each entry, a scale for each block of them
                arXiv 2110.02861
    muon        m ← μ m + (1 − μ) g    θ ← θ − η (0.2 √max(rows, columns) O(μ m + (1 − μ) g) + λ θ)
                arXiv 2502.16982; for matrices inside the model, where O is the nearest orthogonal matrix, approached in
                a few products; adamw for the rest: embeddings, the head, whatever is no matrix

λ applies to matrices only. Norm scales and biases are few, and pulling them towards zero changes what a layer outputs,
not how complex it is. The rate η is set by the step from the schedule; the optimizer holds moments and nothing else.
Muon's factor gives its updates the size of AdamW's, so that one rate and one schedule serve all weights.

Weights of one group have the same moments, which a checkpoint relies on to notice that one is missing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from training.config import OptimizerKind
from training.imports import import_lean

Group = dict[str, Any]

ENTRIES_IN_8_BITS_MIN = 4096
"""Smaller weights keep 32 bits: there is little to save, and in few blocks one outlier coarsens many entries."""


def optimizer_of(
    kind: OptimizerKind,
    model: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    fused: bool,
    momentum: float,
) -> torch.optim.Optimizer:
    """The optimizer of all parameters that require a gradient.

    Args:
        kind: which formula above.
        model: its matrices are told from its embeddings and its head as transformers tells them.
        weight_decay: λ.
        betas: β₁ and β₂.
        epsilon: ε.
        fused: AdamW as one kernel; of adamw_8bit there is one kernel only.
        momentum: μ, for muon.
    """
    if kind == "adamw_8bit":
        return _adamw_8bit(model, weight_decay=weight_decay, betas=betas, epsilon=epsilon)
    if kind == "muon":
        return _muon(model, momentum=momentum, weight_decay=weight_decay, betas=betas, epsilon=epsilon, fused=fused)
    return adamw(model, weight_decay=weight_decay, betas=betas, epsilon=epsilon, fused=fused)


def adamw(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float, fused: bool
) -> torch.optim.AdamW:
    """AdamW over all of them."""
    groups = _groups(_trained(model), weight_decay)
    # The rate is a placeholder: the step sets it before every update.
    return torch.optim.AdamW(groups, 0.0, betas, epsilon, fused=fused)


def _adamw_8bit(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    # Imported by those who want it: it takes a second, and looks for accelerators.
    import_lean("bitsandbytes")
    from bitsandbytes.optim import AdamW8bit

    trained = _trained(model)
    small = [each for each in trained if each.numel() < ENTRIES_IN_8_BITS_MIN]
    large = [each for each in trained if each.numel() >= ENTRIES_IN_8_BITS_MIN]
    groups = [group for weights in (large, small) for group in _groups(weights, weight_decay)]
    bits: dict[str, Any] = {"min_8bit_size": ENTRIES_IN_8_BITS_MIN}
    made: torch.optim.Optimizer = AdamW8bit(groups, 0.0, betas, epsilon, **bits)  # type: ignore[no-untyped-call]  # it has no types
    return made


def _muon(
    model: nn.Module,
    *,
    momentum: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    fused: bool,
) -> torch.optim.Optimizer:
    outside = {id(each) for each in _embeddings_and_head(model)}
    trained = _trained(model)
    inside = [each for each in trained if each.ndim == 2 and id(each) not in outside]
    rest = _groups([each for each in trained if each.ndim != 2 or id(each) in outside], weight_decay)
    parts: list[torch.optim.Optimizer] = []
    if inside:
        parts.append(torch.optim.Muon(inside, 0.0, weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(torch.optim.AdamW(rest, 0.0, betas, epsilon, fused=fused))
    return _Several(parts)


class _Several(torch.optim.Optimizer):
    """Optimizers of different weights as one: their groups in order, and one state."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # of overloads
        """Updates the weights of each."""
        for part in self._parts:
            part.step()
        return None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the groups and the state, for all."""
        super().load_state_dict(dict(state_dict))
        self._share()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    """In the order in which the model names them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained, "a model without trained weights should have been refused"
    return trained


def _groups(weights: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """The weights that are decayed, and those that are not; a group for each if it has any."""
    weights = list(weights)
    groups: list[Group] = [
        {"params": [each for each in weights if each.ndim >= 2], "weight_decay": weight_decay},
        {"params": [each for each in weights if each.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _embeddings_and_head(model: nn.Module) -> Iterable[nn.Parameter]:
    """Matrices whose rows are looked up or compared one by one, so that they are not maps between spaces."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield from module.parameters(recurse=False)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]  # of transformers
    if head is not None:
        yield from head.parameters(recurse=False)
