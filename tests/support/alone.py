"""What a model says of one document by itself, by transformers' own attention and without our packs."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def hidden_alone(model: Any, token_ids: NDArray[np.int32]) -> Tensor:
    """hidden_TH: what the head reads at each position."""
    with_ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    ids = torch.from_numpy(token_ids.astype(np.int64))[None]
    hidden: Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
    model.set_attn_implementation(with_ours)
    return hidden


def logprobs_alone(model: Any, token_ids: NDArray[np.int32]) -> list[Tensor]:
    """Of each token log p(x_t | x_<t); of the first, which nothing predicts, 0."""
    said = model.get_output_embeddings()(hidden_alone(model, token_ids)).log_softmax(-1)
    return [torch.zeros(()), *(said[at - 1, int(token_ids[at])] for at in range(1, len(token_ids)))]
