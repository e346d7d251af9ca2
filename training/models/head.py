"""Log-probabilities of given tokens without ever holding the scores of all tokens: the head, a few positions at a time.

    z_t = s W h_{t−1}      log p(x_t) = z_t[x_t] − log Σ_v exp z_t[v]      ∂ log p(x_t) / ∂ z_t = onehot(x_t) − p

Scores over the vocabulary are the largest tensor of a step: 2 GiB for 4,096 positions of 131,072 tokens in float32,
and again for their gradient. Here a chunk of them lives at a time. The gradient of a chunk is formed while its scores
are there, in the forward pass, so nothing is computed twice: what is kept is one row of H numbers for each position,
and one gradient of the head.

The row of a position can be scaled by whatever gradient arrives for it. The head's gradient is a sum over positions, so
the factors must be known up to a common one (`weights_K`); where they are not, as in a loss of differences of sums, the
backward pass computes the chunks once more, if the head is trained at all.

Runs inside the model's own call, in place of the head's `forward`: a backend that gathers the head's weight for its
call gathers it here too. What the model does to its logits after the head is found out by asking it; a factor
(granite) is honoured, anything else (a soft cap) refused.

Shapes: K positions, H hidden size, V vocabulary, C positions of a chunk.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import ModelError
from training.models.attention import DocumentStarts


@dataclass(frozen=True)
class ChunkedHead:
    """How a model's head is run; made by `chunked_head`, which checks that it can be."""

    chunk_tokens: int
    """Positions whose scores are held at a time."""
    logit_scale: float
    """What the model multiplies the head's output with."""

    @contextmanager
    def in_place_of_logits(self, model: nn.Module, targets_K: Tensor, weights_K: Tensor | None) -> Iterator[None]:
        """While it is entered, a call of the model gives logprobs_1K where it gave logits_1KV."""

        def forward(hidden_1KH: Tensor) -> Tensor:
            logprobs_K: Tensor = _Logprobs.apply(  # type: ignore[no-untyped-call]  # torch gives it no types
                hidden_1KH[0], head.weight, targets_K, weights_K, self, torch.is_grad_enabled()
            )
            # The model will multiply by its scale, which is inside the scores already.
            return logprobs_K[None] / self.logit_scale

        head = _head(model)
        with _forward_replaced(head, forward):
            yield


def chunked_head(model: nn.Module, chunk_tokens: int, where: str) -> ChunkedHead:
    """The way to run the model's head in chunks.

    Raises:
        ModelError: the head is not a plain matrix, or the model changes logits by more than a factor.
    """
    head = _head(model)
    if type(head) is not nn.Linear or getattr(head, "bias", None) is not None:
        raise _refused(where, f"a head that is {head}")
    return ChunkedHead(chunk_tokens, _logit_scale(model, head, where))


@torch.no_grad()
def _logit_scale(model: nn.Module, head: nn.Module, where: str) -> float:
    """The factor between what the head gives and what the model gives, found by giving it numbers of our own."""
    device = next(model.parameters()).device
    given_1TV = torch.linspace(-60.0, 60.0, 2 * 31, device=device).view(1, 2, 31)
    ids_1T = torch.zeros(1, 2, dtype=torch.int64, device=device)
    with _forward_replaced(head, lambda hidden: given_1TV):
        positions_1T = torch.arange(2, device=device)[None]
        starts = DocumentStarts([0, 2])
        got_1TV = model(input_ids=ids_1T, position_ids=positions_1T, use_cache=False, document_starts=starts).logits
    scales = got_1TV.float() / given_1TV
    scale: float = scales.median().item()
    if scale == 0.0 or not torch.allclose(scales, torch.full_like(scales, scale), rtol=1e-4, atol=0.0):
        raise _refused(where, f"a model that bends its logits (by factors of {scales.min():.3g} to {scales.max():.3g})")
    return scale


class _Logprobs(torch.autograd.Function):
    """log p of each target, [K] in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        head_VH: Tensor,
        targets_K: Tensor,
        weights_K: Tensor | None,
        how: ChunkedHead,
        has_backward: bool,
    ) -> Tensor:
        """Computes the chunks, and with them the gradients that are asked for."""
        ctx.how, ctx.head_gradient = how, None
        wants_hidden, wants_head = (has_backward and wants for wants in ctx.needs_input_grad[:2])
        ctx.dtype = _dtype_of_products(head_VH)
        logprobs_K = torch.empty(len(hidden_KH), dtype=torch.float32, device=hidden_KH.device)
        row_KH = torch.zeros_like(hidden_KH) if wants_hidden else None
        if wants_head and weights_K is not None:
            ctx.head_gradient = torch.zeros_like(head_VH)
        head = head_VH.to(ctx.dtype)
        for here, hidden, logprobs, slope in _chunks(ctx, hidden_KH, head, targets_K, wants_hidden or wants_head):
            logprobs_K[here] = logprobs
            if row_KH is not None:
                row_KH[here] = slope.to(ctx.dtype) @ head
            if ctx.head_gradient is not None and weights_K is not None:
                _add_product(ctx.head_gradient, slope.mul_(weights_K[here, None]).to(ctx.dtype), hidden)
        is_again = wants_head and weights_K is None
        ctx.save_for_backward(row_KH, weights_K, *((hidden_KH, head_VH, targets_K) if is_again else ()))
        return logprobs_K

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_K: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients formed before, times what each position got."""
        row_KH, weights_K, *again = ctx.saved_tensors
        hidden_gradient = None if row_KH is None else row_KH * gradient_K[:, None].to(row_KH.dtype)
        head_gradient, ctx.head_gradient = ctx.head_gradient, None
        if head_gradient is not None:
            factor = gradient_K @ weights_K / (weights_K @ weights_K).clamp_min(torch.finfo(torch.float32).tiny)
            assert torch.allclose(gradient_K, factor * weights_K, rtol=1e-4), (
                "logprobs got other gradients than weights"
            )
            head_gradient.mul_(factor)
        elif again:
            hidden_KH, head_VH, targets_K = again
            head_gradient = torch.zeros_like(head_VH)
            for here, hidden, _, slope in _chunks(ctx, hidden_KH, head_VH.to(ctx.dtype), targets_K, has_slope=True):
                _add_product(head_gradient, slope.mul_(gradient_K[here, None]).to(ctx.dtype), hidden)
        return hidden_gradient, head_gradient, None, None, None, None


def _chunks(
    ctx: Any, hidden_KH: Tensor, head_VH: Tensor, targets_K: Tensor, has_slope: bool
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """For each chunk: where, hidden_CH, logprobs_C, and slope_CV, derivatives of logprobs by the head's output."""
    for start in range(0, len(hidden_KH), ctx.how.chunk_tokens):
        here = slice(start, start + ctx.how.chunk_tokens)
        hidden_CH = hidden_KH[here].to(ctx.dtype)
        scores_CV = nn.functional.linear(hidden_CH, head_VH).float().mul_(ctx.how.logit_scale)
        logprobs_CV = scores_CV.log_softmax(-1)
        del scores_CV
        target_C1 = targets_K[here, None]
        logprobs_C = logprobs_CV.gather(1, target_C1).squeeze(1)
        slope_CV = logprobs_CV
        if has_slope:
            slope_CV = logprobs_CV.exp_().neg_()
            slope_CV.scatter_add_(1, target_C1, torch.ones_like(target_C1, dtype=torch.float32))
            slope_CV.mul_(ctx.how.logit_scale)
        yield here, hidden_CH, logprobs_C, slope_CV


def _add_product(total_VH: Tensor, slope_CV: Tensor, hidden_CH: Tensor) -> None:
    """Adds slopeᵀ hidden to the total, which stays in its own type."""
    if slope_CV.dtype == total_VH.dtype:
        total_VH.addmm_(slope_CV.T, hidden_CH)
    else:
        total_VH += slope_CV.T @ hidden_CH


def _dtype_of_products(weight: Tensor) -> torch.dtype:
    """What a linear layer would compute in here."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _head(model: nn.Module) -> nn.Module:
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]  # of transformers, through any wrapper
    return head


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Has the module's call, hooks and all, compute something else while it is entered."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]


def _refused(where: str, got: str) -> ModelError:
    return ModelError(
        where,
        got=got,
        expected="a head without bias or adapter, whose output is the logits up to a factor",
        hint="leave --model.loss_chunk_tokens out; scores are then held for all positions of a microbatch",
    )
