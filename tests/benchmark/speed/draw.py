"""Completions of ragged prompts: by the toolkit's sampler, and by transformers' `generate` with padding on the left.

Both take the likeliest token, so that they draw the same ones, and one token in forty ends a completion: some are short
and some are cut off, as those of a model in training are. Each prompt is asked four times, as for a group of GRPO. What
`generate` leaves out is the log-probability of each token, which learning from rewards needs.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tests.benchmark.speed.work import SHAPES, cost_of, model_of, settle, tell
from training.rollout.generate import Sampling, generate

NUM_PROMPTS, GROUP_SIZE, TOKENS_MAX = 12, 4, 128


def toolkit(model: PreTrainedModel, prompts: Sequence[NDArray[np.int32]], stops: frozenset[int]) -> list[list[int]]:
    """The completions."""
    sampling = Sampling(temperature=0.0, top_p=1.0, num_tokens_max=TOKENS_MAX, stop_ids=stops)
    made = generate(model, prompts, sampling=sampling, seeds=range(len(prompts)), device=torch.device("cpu"))
    return [each.token_ids.tolist() for each in made]


def transformers(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.int32]], stops: frozenset[int]
) -> list[list[int]]:
    """The completions."""
    longest = max(map(len, prompts))
    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, prompt in enumerate(prompts):
        padded[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    made = model.generate(  # type: ignore[operator]  # transformers declares no types for it
        padded,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=TOKENS_MAX,
        eos_token_id=sorted(stops),
        pad_token_id=0,
    )[:, longest:].tolist()
    ends = [next((at + 1 for at, token in enumerate(row) if token in stops), len(row)) for row in made]
    return [row[:end] for row, end in zip(made, ends, strict=True)]


def main() -> None:
    """Measures one way at one shape."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("toolkit", "transformers"))
    parser.add_argument("--shape", choices=SHAPES, required=True)
    arguments = parser.parse_args()
    settle()
    # As wide as this, what is likeliest depends on all that came before, and few completions go round in circles.
    model = model_of(arguments.shape, initializer_range=0.1).eval()
    if arguments.way == "transformers":
        model.set_attn_implementation("sdpa")
    random = np.random.default_rng(0)
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    lengths = random.lognormal(np.log(60), 0.8, NUM_PROMPTS).clip(4, 256).astype(int)
    different = [random.integers(0, vocabulary, length).astype(np.int32) for length in lengths]
    prompts = [prompt for prompt in different for _ in range(GROUP_SIZE)]
    stops = frozenset(random.choice(vocabulary, vocabulary // 40, replace=False).tolist())
    take = {"toolkit": toolkit, "transformers": transformers}[arguments.way]
    cost = cost_of(lambda: take(model, prompts, stops))
    completions = cost.result
    drawn = sum(map(len, completions))
    # Any other token, or the same at another place, changes it.
    check = sum(token * (at + 1) * (row + 1) for row, each in enumerate(completions) for at, token in enumerate(each))
    tell(cost, drawn, float(check), longest=max(map(len, completions)), mean=drawn / len(prompts))


if __name__ == "__main__":
    main()
