"""Documents of a pack that begin with the same prompt have it computed once.

    prompt completion₁ | prompt completion₂ | prompt completion₃   →   prompt completion₁ | completion₂ | completion₃

The completions of a group and the two sides of a pair repeat their prompt, and a step that does not is that much
shorter. A document that leaves its prompt out sees that of the first document which has it, and its own tokens, at the
positions that they would have had: losses and gradients are the same up to rounding. (For pairs: arXiv 2410.20305.)

A document's prompt is what stands before the first of its tokens that counts, so what is shared never has a loss of
its own, and which documents share follows from their tokens alone.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.example import Example, TokenIds, Weights
from training.data.pack import pack


class Sizes:
    """What examples take up in a pack, each alone or several together."""

    def __init__(self, examples: Sequence[Example], *, share_prompts: bool) -> None:
        """Looks at each example once."""
        self._documents_of: list[list[tuple[bytes, int]]] = []
        for each in examples:
            starts = np.append(each.document_starts, len(each))
            prompts = _prompts(each.token_ids, each.weights, starts) if share_prompts else [b""] * (len(starts) - 1)
            self._documents_of.append(list(zip(prompts, np.diff(starts).tolist(), strict=True)))

    def together(self, members: Iterable[int]) -> int:
        """Tokens of the examples with these numbers in one pack."""
        num_tokens, seen = 0, {b""}
        for member in members:
            for prompt, length in self._documents_of[member]:
                num_tokens += length - (_length(prompt) if prompt in seen else 0)
                seen.add(prompt)
        return num_tokens

    def packs(self, capacity: int) -> list[list[int]]:
        """The numbers of all examples in packs of at most `capacity` tokens; those that share a prompt stay together.

        As many as fit, that is. Numbers rise within a pack, and packs are ordered by their first.

        Raises:
            DataError: an example is longer than the capacity.
        """
        bundles: list[list[int]] = []
        open_for: dict[bytes, list[int]] = {}
        for number, documents in enumerate(self._documents_of):
            prompt = documents[0][0]
            bundle = open_for.get(prompt) if prompt else None
            if bundle is None or self.together([*bundle, number]) > capacity:
                bundle = []
                bundles.append(bundle)
                open_for[prompt] = bundle
            bundle.append(number)
        packs = pack([self.together(each) for each in bundles], capacity)
        return sorted(sorted(number for each in members for number in bundles[each]) for members in packs)


def shared_prompts(token_ids: TokenIds, weights: Weights, starts: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Of each document, an earlier one that begins with its prompt, and the tokens of that; (0, 0) where none does.

    Empty where none of them does.

    Args:
        token_ids: of the documents end to end, int32 [T], prompts and all.
        weights: float32 [T].
        starts: [0, …, T], where each document begins.
    """
    first: dict[bytes, int] = {}
    shared = []
    for document, prompt in enumerate(_prompts(token_ids, weights, starts)):
        owner = first.setdefault(prompt, document)
        shared.append((owner, _length(prompt)) if prompt and owner != document else (0, 0))
    return shared if any(length for _, length in shared) else []


def _prompts(token_ids: TokenIds, weights: Weights, starts: NDArray[np.integer]) -> list[bytes]:
    """The tokens of each document before the first that counts; nothing of a document in which none does."""
    counted = np.append(np.flatnonzero(weights), len(weights))
    firsts = counted[np.searchsorted(counted, starts[:-1])]
    return [
        token_ids[start:first].tobytes() if first < end else b""
        for start, end, first in zip(starts[:-1], starts[1:], firsts, strict=True)
    ]


def _length(prompt: bytes) -> int:
    """Tokens of what `_prompts` says."""
    return len(prompt) // np.dtype(np.int32).itemsize
