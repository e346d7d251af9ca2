"""The loss of a critic, clipped as PPO's code clips it (arXiv 1707.06347; the clip is in arXiv 2005.12729, §3).

    loss_t = ½ max( (V_t − R_t)²,  (V_old_t + clip(V_t − V_old_t, −ε, ε) − R_t)² )        R = A + V_old

Shapes: K tokens.
"""

import torch
from torch import Tensor


def value_loss(values_K: Tensor, old_values_K: Tensor, returns_K: Tensor, *, clip: float) -> Tensor:
    """loss_K: of each token.

    Args:
        values_K: what the critic says now.
        old_values_K: what it said when the completion was sampled.
        returns_K: what it should have said.
        clip: ε, how far it may profit from moving away from what it said.
    """
    near_K = old_values_K + (values_K - old_values_K).clamp(-clip, clip)
    return torch.maximum((values_K - returns_K).square(), (near_K - returns_K).square()) / 2
