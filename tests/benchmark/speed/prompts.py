"""What both contenders for learning from rewards share: prompts, a reward, and the numbers that tokens are drawn with.

Samplers that draw by themselves write other completions, and whoever writes shorter ones has less to do. So both draw
the token in which the same uniform number falls (`training.rollout.generate`), and write the same ones.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from tests.benchmark.speed.work import SHAPES, place
from tests.support.chats import write_jsonl
from training.data.loader import permutation
from training.models.tiny import tiny_tokenizer
from training.rollout.episodes import seed_of

NUM_STEPS, NUM_PROMPTS, GROUP_SIZE, TOKENS_MAX = 2, 8, 8, 128
"""Each step asks other prompts, and all of its completions are learned from at once."""

SEED = 0


def place_prompts(directory: Path, shape: str) -> None:
    """Writes a model to `base` and ragged prompts to `prompts.jsonl`. One token in forty ends a completion."""
    place(directory, shape)
    random = np.random.default_rng(1)
    lengths = random.lognormal(np.log(60), 0.8, NUM_STEPS * NUM_PROMPTS).clip(4, 256).astype(int)
    texts = ["".join(random.choice(list("etaoin shrdlu "), length)) for length in lengths]
    write_jsonl(directory / "prompts.jsonl", [{"prompt": [{"role": "user", "content": text}]} for text in texts])
    vocabulary = SHAPES[shape]["vocab_size"]
    tokenizer = tiny_tokenizer()
    ends = {int(each) for each in random.choice(vocabulary, vocabulary // 40, replace=False)}
    config = GenerationConfig(eos_token_id=sorted(ends | {tokenizer.eos_token_id}), pad_token_id=tokenizer.pad_token_id)
    config.save_pretrained(directory / "base")


def order() -> list[int]:
    """Lines of the file, in the order in which the toolkit asks them."""
    return [int(each) for each in permutation(NUM_STEPS * NUM_PROMPTS, seed=SEED, epoch=0)]


def uniforms(rollout: int) -> torch.Tensor:
    """uniform_BS: the number of each token of each completion of a rollout."""
    seeds = [seed_of(SEED, rollout, number) for number in range(NUM_PROMPTS * GROUP_SIZE)]
    made = [torch.rand(TOKENS_MAX, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return torch.stack(made)


def of_text(text: str) -> float:
    """More different characters are better."""
    return len(set(text)) / 16


def reward(prompt: Any, completion: str) -> float:
    """The reward as the toolkit asks for it."""
    return of_text(completion)
