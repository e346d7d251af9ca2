"""A critic on the trunk of a language model: one number before each token, of what is still to come.

    V_t = w · h_{t−1}        h: what the head turns into scores for token t

It has no trunk of its own, so that a run holds one model and a call of it gives both answers; what the critic learns
moves the weights that the policy has, by as much as its coefficient allows. w begins at 0, and so does every value:
nothing is expected before anything was seen.

Values are in float32 whatever the layers compute in, as rewards are, of which they are sums.

Shapes: T positions, K of them asked for, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.models.inner import inner

NAME = "critic"
"""What the model calls it, and so what its weight is called in checkpoints."""


class Critic(nn.Module):
    """One number for each row."""

    def __init__(self, hidden_size: int) -> None:
        """Expects nothing yet."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def forward(self, hidden_1KH: Tensor) -> Tensor:
        """values_1K, in float32."""
        with torch.autocast(hidden_1KH.device.type, enabled=False):
            return nn.functional.linear(hidden_1KH.float(), self.weight)[..., 0]


def add_critic(model: nn.Module) -> None:
    """Gives the model in whatever wraps it a critic that is trained. After an adapter, which freezes what is there."""
    trunk = inner(model)
    trunk.add_module(NAME, Critic(_head(trunk).in_features).to(next(trunk.parameters()).device))


def remove_critic(model: nn.Module) -> None:
    """Takes it away, as no export has it: what loads a language model has no place for it."""
    delattr(inner(model), NAME)


@contextmanager
def critic_listening(model: nn.Module) -> Iterator[list[Tensor]]:
    """While it is entered, each call of the model appends values_K of the positions whose scores it gives.

    The critic runs inside the model's own call, and its values leave with the model's output: a backend that gathers
    weights for a call, and again when a gradient arrives for what it returned, gathers those of the critic too.
    """
    trunk, heard = inner(model), list[Tensor]()

    def listen(head: nn.Module, given: tuple[Any, ...]) -> None:
        heard.append(getattr(trunk, NAME)(given[0])[0])

    def pass_on(module: nn.Module, given: Any, outputs: Any) -> Any:
        outputs["values"] = heard[-1]
        return outputs

    hooks = [
        _head(trunk).register_forward_pre_hook(listen),
        # Before the hooks of what wraps the model, which look at its output.
        trunk.register_forward_hook(pass_on, prepend=True),
    ]
    try:
        yield heard
    finally:
        for each in hooks:
            each.remove()


def _head(trunk: PreTrainedModel) -> Any:
    return trunk.get_output_embeddings()  # type: ignore[no-untyped-call]  # it declares no types
