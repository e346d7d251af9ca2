"""A sample as the model will see it: token ids, and how much predicting each of them counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import EmptyWeightsError

TokenIds = NDArray[np.int32]
Weights = NDArray[np.float32]
Starts = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Example:
    """Token ids and weights of one sample.

    `weights[t]` counts the prediction *of* token t from the tokens before it in its document. A document's first token
    has nothing before it, so its weight is 0: that one rule is what keeps a pack of documents from predicting across
    their borders, and what makes a sum over a pack equal the sum over its documents.

    T: tokens of the example. D: documents in it; 1 for a conversation, any number for a block of plain text.
    """

    token_ids: TokenIds
    """int32 [T]"""
    weights: Weights
    """float32 [T]; 0 leaves a token out of the loss, 0 at every document start"""
    where: str
    """The line it came from, for messages: chat.jsonl:17."""
    document_starts: Starts = field(default_factory=lambda: np.zeros(1, dtype=np.int32))
    """int32 [D], rising, the first is 0: where each document begins."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What else an algorithm wants to find in the batch; names end in the shape: _T for a value of each token, _D for
    one of each document."""

    def __post_init__(self) -> None:
        """Refuses an example that would train nothing; anything else wrong here is a mistake of ours."""
        assert self.token_ids.dtype == np.int32, self.token_ids.dtype
        assert self.weights.dtype == np.float32, self.weights.dtype
        assert self.token_ids.shape == self.weights.shape == (len(self.token_ids),)
        assert self.document_starts[0] == 0
        for name, column in self.columns.items():
            assert len(column) == {"T": len(self), "D": len(self.document_starts)}[name.rpartition("_")[2]], name
        assert not self.weights[self.document_starts].any(), "a document's first token cannot be predicted"
        if not self.weights.any():
            raise EmptyWeightsError(
                self.where,
                got=f"no token of the sample ({len(self)} tokens) has a weight, so there is nothing to learn",
                expected="at least one token to predict",
                hint="check that the template renders assistant turns, set unmask, or skip with --on-bad-sample=skip",
            )

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)

    @property
    def weight_sum(self) -> float:
        """Sum of all weights, in float64: one summand of the divisor."""
        return float(self.weights.sum(dtype=np.float64))
