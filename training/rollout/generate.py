"""Completions drawn from the model that is being trained, with a cache of keys and values, and their log-probabilities.

    token_t = the first v with  Σ_{u ≤ v} p_t(u)  >  U_t            p_t: softmax(logits / temperature), its nucleus kept

The uniform numbers U_t of a completion come from a generator of its own, so what is drawn depends on its seed and on
the model, not on who else is in the batch or on how many ranks share the work; up to rounding, for a product of another
shape may round otherwise, and a number that falls just there draws another token.

Log-probabilities are the model's own, at temperature 1 over the whole vocabulary, whatever the tokens were drawn with:
those that training computes for the same tokens.

Left out on purpose: an engine of its own. The model is called as it is wrapped, so a backend that gathers weights for a
call gathers them here, once for each token; ranks that share weights take each call together.

Shapes: B completions, S positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

ATTENTION = "sdpa"
"""transformers' own, which knows caches and padding; attention per document knows neither."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float
    """0 takes the likeliest token."""
    top_p: float
    """Tokens are drawn from the fewest that have this probability together."""
    num_tokens_max: int
    """After which a completion is cut off."""
    stop_ids: frozenset[int]
    """Tokens that end a completion, and are part of it."""


@dataclass(frozen=True, eq=False)
class Completion:
    """What followed a prompt."""

    token_ids: NDArray[np.int32]
    """At least one."""
    logprobs: NDArray[np.float32]
    """Of each token, as the module says."""
    is_finished: bool
    """False if it was cut off."""


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[NDArray[np.int32]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    device: torch.device,
    all_done: Callable[[bool], bool] = lambda done: done,
) -> list[Completion]:
    """One completion for each prompt, drawn in one batch. Dropout is off meanwhile.

    Args:
        model: a causal language model, however wrapped.
        prompts: token ids of each, at least one.
        sampling: how tokens are drawn.
        seeds: of each completion's generator.
        device: where the model computes.
        all_done: asked before each further call of the model, with whether this rank needs it; False makes one, so
            that ranks that share weights stay in step.
    """
    longest = max(map(len, prompts))
    ids_BS = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask_BS = torch.zeros_like(ids_BS)
    for row, prompt in enumerate(prompts):
        ids_BS[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask_BS[row, longest - len(prompt) :] = 1
    uniforms_BS = torch.stack([_uniforms(seed, sampling.num_tokens_max) for seed in seeds]).to(device)
    ids_BS, mask_BS = ids_BS.to(device), mask_BS.to(device)
    positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    stops = torch.tensor(sorted(sampling.stop_ids), dtype=torch.int64, device=device)
    cache, drawn, scores = DynamicCache(), [], []
    is_done_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    was_training = model.training
    model.eval()
    with _attending(model):
        for number in range(sampling.num_tokens_max):
            logits_BV = model(
                input_ids=ids_BS,
                attention_mask=mask_BS,
                position_ids=positions_BS,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            logprobs_BV = logits_BV.float().log_softmax(-1)
            token_B = draw(logprobs_BV, uniforms_BS[:, number], sampling)
            drawn.append(token_B)
            scores.append(logprobs_BV.gather(1, token_B[:, None])[:, 0])
            is_done_B = is_done_B | torch.isin(token_B, stops)
            if all_done(bool(is_done_B.all())):
                break
            ids_BS, positions_BS = token_B[:, None], positions_BS[:, -1:] + 1
            mask_BS = torch.cat([mask_BS, torch.ones_like(mask_BS[:, :1])], dim=1)
    model.train(was_training)
    tokens, logprobs = torch.stack(drawn, 1).cpu().numpy(), torch.stack(scores, 1).cpu().numpy()
    return [_completion(row, scored, sampling.stop_ids) for row, scored in zip(tokens, logprobs, strict=True)]


def draw(logprobs_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    """token_B: by the module's formula, in float64, over the vocabulary in its order.

    Args:
        logprobs_BV: of the model.
        uniforms_B: float64, at least 0 and below 1.
        sampling: temperature and nucleus.
    """
    if sampling.temperature == 0:
        return logprobs_BV.argmax(-1)
    probabilities_BV = (logprobs_BV.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
        # A token belongs to the nucleus if those before it do not have enough: the first always does.
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        kept_BV = torch.zeros_like(probabilities_BV).scatter(1, order_BV, (before_BV < sampling.top_p).double())
        probabilities_BV = probabilities_BV * kept_BV
    sums_BV = probabilities_BV.cumsum(-1)
    # Right of all sums up to the number: a token without probability is never the first above it.
    token_B1 = torch.searchsorted(sums_BV, uniforms_B[:, None] * sums_BV[:, -1:], right=True)
    return token_B1[:, 0].clamp(max=logprobs_BV.shape[1] - 1)


def _uniforms(seed: int, num: int) -> Tensor:
    return torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _completion(tokens: NDArray[np.int64], logprobs: NDArray[np.float32], stop_ids: frozenset[int]) -> Completion:
    """The tokens up to the first that stops, and that one."""
    stops = np.flatnonzero(np.isin(tokens, sorted(stop_ids)))
    num = int(stops[0]) + 1 if len(stops) else len(tokens)
    return Completion(tokens[:num].astype(np.int32), logprobs[:num].astype(np.float32), bool(len(stops)))


def stop_ids(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion: the tokenizer's, and those that the model's generation config names.

    A chat model's turn often ends with another token than a document, and only the latter is the tokenizer's.
    """
    named = getattr(_inner(model).generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(each for each in [tokenizer.eos_token_id, *several] if each is not None)


def _inner(model: nn.Module) -> PreTrainedModel:
    """The model of transformers in whatever wraps it."""
    return next(each for each in model.modules() if isinstance(each, PreTrainedModel))


@contextmanager
def _attending(model: nn.Module) -> Iterator[None]:
    """Has the model attend by transformers' own attention while entered, whichever it is trained with."""
    inner = _inner(model)
    before = inner.config._attn_implementation
    inner.set_attn_implementation(before if before == "eager" else ATTENTION)
    try:
        yield
    finally:
        inner.set_attn_implementation(before)
