"""Completions drawn from the model that is being trained, with a cache of keys and values, and their log-probabilities.

    token_t = the first v with  Σ_{u ≤ v} p_t(u)  >  U_t            p_t: softmax(logits / temperature), its nucleus kept

The uniform numbers U_t of a completion come from a generator of its own, so what is drawn depends on its seed and on
the model, not on who else is in the batch or on how many ranks share the work; up to rounding, for a product of another
shape may round otherwise, and a number that falls just there draws another token.

Log-probabilities are the model's own, at temperature 1 over the whole vocabulary, whatever the tokens were drawn with:
those that training computes for the same tokens.

A prompt that is asked several times is read once. Rows that are done leave the batch as soon as they are a quarter of
it, and keys and values are written into tensors with room to grow: to join them anew for each token takes longer than
all the rest on a CPU.

Left out on purpose: an engine of its own. The model is called as it is wrapped, so a backend that gathers weights for a
call would gather them once for each token: `Backend.gathered` does so once for all. Ranks that share weights take each
call together.

Shapes: B completions, R of them still drawn, S positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from training.models.forward import evaluating
from training.models.inner import inner

ATTENTION = "sdpa"
"""transformers' own, which knows caches and padding; attention per document knows neither."""


SHARE_DONE = 0.25
"""Of the rows of a batch, from which on those that are done leave it: each time, the cache is copied once."""
ROOM = 128
"""Positions that a cache has room for beyond what is in it, each time that it is full."""


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
    places: dict[bytes, int] = {}
    place_B = [places.setdefault(prompt.tobytes(), len(places)) for prompt in prompts]
    different = dict(zip(place_B, prompts, strict=True)).values()
    longest = max(map(len, prompts))
    ids_RS = torch.zeros(len(different), longest, dtype=torch.int64)
    mask_RS = torch.zeros_like(ids_RS)
    for row, prompt in enumerate(different):
        ids_RS[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask_RS[row, longest - len(prompt) :] = 1
    uniforms_BS = torch.stack([_uniforms(seed, sampling.num_tokens_max) for seed in seeds]).to(device)
    ids_RS, mask_RS = ids_RS.to(device), mask_RS.to(device)
    positions_RS = (mask_RS.cumsum(1) - 1).clamp(min=0)
    stops = torch.tensor(sorted(sampling.stop_ids), dtype=torch.int64, device=device)
    cache = Cache(layer_class_to_replicate=_Roomy)
    tokens_BS = torch.zeros_like(uniforms_BS, dtype=torch.int64)
    scores_BS = torch.zeros_like(uniforms_BS, dtype=torch.float32)
    rows_R = torch.arange(len(prompts), device=device)
    is_done_R = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    with evaluating(model), _attending(model):
        for number in range(sampling.num_tokens_max):
            logits_RV = model(
                input_ids=ids_RS,
                attention_mask=mask_RS,
                position_ids=positions_RS,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if number == 0 and len(different) < len(prompts):
                asked = torch.tensor(place_B, device=device)
                cache.batch_select_indices(asked)
                logits_RV, mask_RS, positions_RS = logits_RV[asked], mask_RS[asked], positions_RS[asked]
            logprobs_RV = logits_RV.float().log_softmax(-1)
            token_R = draw(logprobs_RV, uniforms_BS[rows_R, number], sampling)
            tokens_BS[rows_R, number] = token_R
            scores_BS[rows_R, number] = logprobs_RV.gather(1, token_R[:, None])[:, 0]
            is_done_R = is_done_R | torch.isin(token_R, stops)
            num_left = len(is_done_R) - int(is_done_R.sum())
            if all_done(num_left == 0):
                break
            if 0 < num_left <= len(is_done_R) * (1 - SHARE_DONE):
                left = (~is_done_R).nonzero()[:, 0]
                cache.batch_select_indices(left)
                rows_R, token_R, is_done_R = rows_R[left], token_R[left], is_done_R[left]
                mask_RS, positions_RS = mask_RS[left], positions_RS[left]
            ids_RS, positions_RS = token_R[:, None], positions_RS[:, -1:] + 1
            mask_RS = torch.cat([mask_RS, torch.ones_like(mask_RS[:, :1])], dim=1)
    tokens, logprobs = tokens_BS.cpu().numpy(), scores_BS.cpu().numpy()
    return [_completion(row, scored, sampling.stop_ids) for row, scored in zip(tokens, logprobs, strict=True)]


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers gives it no types
    """Keys and values of a layer, views of tensors that have room for those to come."""

    def __init__(self) -> None:
        """Has no room yet."""
        super().__init__()  # type: ignore[no-untyped-call]  # nor this
        self.room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds positions and returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        new = (key_states, value_states)
        if not self.room or end > self.room[0].shape[-2]:
            self.room = [each.new_empty(*each.shape[:-2], end + ROOM, each.shape[-1]) for each in new]
            if self.keys is not None and self.values is not None and begin:
                self.room[0][..., :begin, :] = self.keys
                self.room[1][..., :begin, :] = self.values
        for wide, more in zip(self.room, new, strict=True):
            wide[..., begin:end, :] = more
        keys, values = (each[..., :end, :] for each in self.room)
        self.keys, self.values = keys, values
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows, and makes new room with the next position."""
        super().batch_select_indices(indices)
        self.room = []


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
    named = getattr(inner(model).generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(each for each in [tokenizer.eos_token_id, *several] if each is not None)


@contextmanager
def _attending(model: nn.Module) -> Iterator[None]:
    """Has the model attend by transformers' own attention while entered, whichever it is trained with."""
    base = inner(model)
    before = base.config._attn_implementation
    base.set_attn_implementation(before if before == "eager" else ATTENTION)
    try:
        yield
    finally:
        base.set_attn_implementation(before)
