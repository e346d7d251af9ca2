"""An example that would train nothing is refused; one that breaks its own rules cannot be built."""

import numpy as np
import pytest

from tests.support.examples import example
from training.data.example import Example
from training.errors import EmptyWeightsError


def test_weights_sum_in_double_precision() -> None:
    tenths = example([1] * 1001, [0.0] + [0.1] * 1000)
    assert tenths.weight_sum == pytest.approx(1000 * float(np.float32(0.1)), rel=1e-12)
    assert len(tenths) == 1001


def test_all_weights_zero_is_refused_with_the_line() -> None:
    with pytest.raises(EmptyWeightsError) as caught:
        example([1, 2, 3], [0, 0, 0], where="chat.jsonl:9")
    assert str(caught.value) == (
        "chat.jsonl:9: no token of the sample (3 tokens) has a weight, so there is nothing to learn; expected at least "
        "one token to predict. hint: check that the template renders assistant turns, set unmask, or skip with "
        "--on-bad-sample=skip"
    )


def test_a_weight_on_a_documents_first_token_cannot_be_built() -> None:
    with pytest.raises(AssertionError, match="a document's first token cannot be predicted"):
        example([1, 2], [1, 1])
    ids, weights = np.arange(4, dtype=np.int32), np.array([0, 1, 1, 1], dtype=np.float32)
    with pytest.raises(AssertionError, match="a document's first token cannot be predicted"):
        Example(ids, weights, "book.jsonl:1", np.array([0, 2], dtype=np.int32))
