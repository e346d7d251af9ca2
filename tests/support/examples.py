"""Examples by hand and at random, without tokenizer or model."""

from collections.abc import Sequence

import numpy as np

from training.data.example import Example


def example(token_ids: Sequence[int], weights: Sequence[float] | None = None, where: str = "chat.jsonl:1") -> Example:
    """One document; without weights, every token but the first counts 1."""
    if weights is None:
        weights = [0.0] + [1.0] * (len(token_ids) - 1)
    return Example(np.array(token_ids, dtype=np.int32), np.array(weights, dtype=np.float32), where)


def random_examples(lengths: Sequence[int], *, seed: int = 0, vocabulary_size: int = 256) -> list[Example]:
    """Documents of the given lengths (2 or more); about half of the tokens count, by 1 or by another weight."""
    random = np.random.default_rng(seed)
    examples = []
    for number, length in enumerate(lengths, start=1):
        weights = random.choice([0.0, 0.0, 1.0, 0.5], size=length).astype(np.float32)
        weights[0], weights[-1] = 0.0, 1.0
        ids = random.integers(0, vocabulary_size, size=length).astype(np.int32)
        examples.append(Example(ids, weights, f"chat.jsonl:{number}"))
    return examples


def answered(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Example]:
    """The prompt with each of its completions, of which every token counts, by another weight."""
    examples = []
    for number, completion in enumerate(completions, start=1):
        weights = [0.0] * len(prompt) + [number / 2 + at / 4 for at in range(len(completion))]
        examples.append(example([*prompt, *completion], weights, f"prompts.jsonl:{number}"))
    return examples
