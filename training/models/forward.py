"""Runs a model on a microbatch of packed documents; the one place that knows the keyword arguments for it.

Shapes: T tokens of the microbatch, K positions asked for, V vocabulary, or 1 where the head says one value.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from training.data.batch import Microbatch
from training.models.attention import DocumentStarts
from training.models.critic import critic_listening
from training.models.head import ChunkedHead
from training.models.inner import inner


def logits(model: nn.Module, microbatch: Microbatch, at_K: Tensor | None = None) -> Tensor:
    """logits_KV: scores for the token after each position of `at_K`, or after all T positions (then K = T).

    No attention mask and no cache are passed, on purpose: an all-ones mask, a cache, or missing positions each make
    transformers treat the pack as one document, silently. `use_cache` is switched off for the call and left alone in
    the model's config, which an export carries on.

    Goes through the model's own call, whatever wraps it (an adapter, a shard, a replica).
    """
    head = value_head(model)
    with nullcontext() if head is None else _at_every_position(head, at_K):
        outputs = model(
            input_ids=microbatch.token_ids_T[None],
            position_ids=microbatch.positions_T[None],
            attention_mask=None,
            use_cache=False,
            document_starts=DocumentStarts(microbatch.document_starts_D1.tolist(), microbatch.prompts),
            **({"logits_to_keep": 0 if at_K is None else at_K} if head is None else {}),
        )
    logits_1KV: Tensor = outputs.logits
    return logits_1KV[0]


def values(model: nn.Module, microbatch: Microbatch, at_K: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """values_K: what a model with a value head says after each token of `at_K`, in float32.

    Takes the place of `logprobs` where such a model is trained; `weights_K` is for a chunked head, and unused.
    """
    return logits(model, microbatch, at_K)[:, 0].float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Has dropout and noise off while entered, and the model as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def value_head(model: nn.Module) -> nn.Module | None:
    """The layer of transformers' sequence classifiers, however wrapped; None in a model of language."""
    head: nn.Module | None = getattr(inner(model), "score", None)
    return head


@contextmanager
def _at_every_position(head: nn.Module, at_K: Tensor | None) -> Iterator[None]:
    """Has the model return the head's values at all positions of `at_K`, while entered.

    It returns those at one position, which it takes for the end of a padded sequence. Whichever that is, all values
    stand there: a view, and the way through the model's own call, so that what wraps it notices nothing.
    """

    def spread(module: nn.Module, given: Any, values_1TV: Tensor) -> Tensor:
        wanted_1KV = values_1TV if at_K is None else values_1TV[:, at_K]
        return wanted_1KV[:, None].expand(-1, values_1TV.shape[1], -1, -1)

    handle = head.register_forward_hook(spread)
    try:
        yield
    finally:
        handle.remove()


def logprobs(
    model: nn.Module,
    microbatch: Microbatch,
    next_K: Tensor,
    weights_K: Tensor | None = None,
    *,
    head: ChunkedHead | None = None,
) -> Tensor:
    """logprobs_K: log p(x_t | x_<t) of each token t in `next_K`, in float32 whatever the scores are in.

    The shift is here: the scores after position t − 1 are those for token t, and those after a prompt are for the first
    token of each document that shares it. Only the positions asked for are scored: chats often learn a third of their
    tokens, and scores over the vocabulary are the largest tensor of a step.

    Args:
        model: a causal language model, however wrapped.
        microbatch: packed documents.
        next_K: positions of the tokens, none of them the first.
        weights_K: what the caller will multiply each with, up to a common factor, if it knows; saves a chunked head
            from computing its own gradient in a second pass.
        head: scores are held in chunks; None holds all of them.
    """
    targets_K = microbatch.token_ids_T[next_K]
    before_K = _before(microbatch, next_K)
    if head is None:
        return -nn.functional.cross_entropy(logits(model, microbatch, before_K).float(), targets_K, reduction="none")
    with head.in_place_of_logits(model, targets_K, weights_K):
        return logits(model, microbatch, before_K)


def _before(microbatch: Microbatch, next_K: Tensor) -> Tensor:
    """before_K: the position of the token that comes before each."""
    if not microbatch.prompts:
        return next_K - 1
    before_T = torch.arange(-1, microbatch.num_tokens - 1)
    starts = microbatch.document_starts_D1.tolist()
    for start, (other, length) in zip(starts, microbatch.prompts, strict=False):
        if length:
            before_T[start] = starts[other] + length - 1
    return before_T.to(next_K.device)[next_K]


def logprobs_and_values(
    model: nn.Module,
    microbatch: Microbatch,
    next_K: Tensor,
    weights_K: Tensor | None = None,
    *,
    head: ChunkedHead | None = None,
) -> Tensor:
    """answers_K2: `logprobs` of each token, and what the model's critic expected before it, by one call of the model.

    Takes the place of `logprobs` where a model with a critic is trained, and has its arguments.
    """
    with critic_listening(model) as heard:
        logprobs_K = logprobs(model, microbatch, next_K, weights_K, head=head)
    return torch.stack([logprobs_K, heard[-1]], dim=1)
