"""Attention per document computes what dense attention with a block-diagonal mask computes, or refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from training.errors import ModelError
from training.models import attention
from training.models.attention import DocumentStarts, documents_attention

STARTS = [0, 1, 8, 20]


def projections(num_tokens: int, *, num_groups: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, num_heads, num_tokens, 8, generator=generator, requires_grad=True)
        for num_heads in (4, num_groups, num_groups)
    )
    return query, key, value


def without(tensor: Tensor, *left_out: slice) -> Tensor:
    kept = torch.ones(tensor.shape[2], dtype=torch.bool)
    for each in left_out:
        kept[each] = False
    return tensor[:, :, kept]


def by_definition(query: Tensor, key: Tensor, value: Tensor, starts: list[int], window: int | None) -> Tensor:
    """softmax(q k / sqrt(D) + mask) v with the mask written out: same document, not later, not before the window."""
    position = torch.arange(starts[-1])
    document = torch.bucketize(position, torch.tensor(starts[1:]), right=True)
    seen = (document[:, None] == document) & (position[:, None] >= position)
    if window is not None:
        seen &= position[:, None] - position < window
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def gradients(output: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a sum in which each number of the output has a weight of its own."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * direction).sum(), tensors)


@pytest.fixture(params=[4, 256])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of several blocks, and of one."""
    monkeypatch.setattr(attention, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("window", [None, 1, 3, 12, 100])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_equals_dense_attention_with_a_written_out_mask(window: int | None, num_groups: int) -> None:
    tensors = projections(STARTS[-1], num_groups=num_groups)
    got, weights = documents_attention(
        nn.Identity(), *tensors, None, document_starts=DocumentStarts(STARTS), sliding_window=window, is_causal=None
    )
    expected = by_definition(*tensors, STARTS, window)
    assert weights is None
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    for one, other in zip(gradients(got, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_a_document_sees_the_prompt_that_it_shares_as_if_it_had_it(window: int | None, num_groups: int) -> None:
    """Documents of 7, 13 and 5 tokens; the last two begin with the first four of the first, which they leave out."""
    shared, again, once_more = slice(0, 4), slice(7, 11), slice(20, 24)
    tensors = projections(25, num_groups=num_groups)
    with torch.no_grad():
        for each in tensors:
            each[:, :, again] = each[:, :, once_more] = each[:, :, shared]
    expected = by_definition(*tensors, [0, 7, 20, 25], window)
    got, _ = documents_attention(
        nn.Identity(),
        *(without(each, again, once_more) for each in tensors),
        None,
        document_starts=DocumentStarts([0, 7, 16, 17], [(0, 0), (0, 4), (0, 4)]),
        sliding_window=window,
    )
    kept = without(expected.transpose(1, 2), again, once_more).transpose(1, 2)
    torch.testing.assert_close(got, kept, atol=1e-6, rtol=1e-5)
    # Of what a prompt says in whole, each document has a part of the gradient.
    for one, other in zip(gradients(got, tensors), gradients(kept, tensors), strict=True):
        of_all = other[:, :, shared] + other[:, :, again] + other[:, :, once_more]
        torch.testing.assert_close(one[:, :, shared], of_all, atol=1e-5, rtol=1e-5)
        rest = (without(each, shared, again, once_more) for each in (one, other))
        torch.testing.assert_close(*rest, atol=1e-5, rtol=1e-5)


def test_layers_with_and_without_a_window_may_be_asked_in_one_call() -> None:
    """What is found out for the first layer is kept for the others, but not for those that see something else."""
    tensors, starts = projections(STARTS[-1]), DocumentStarts(STARTS)
    for window in (3, None, 3, 5):
        got, _ = documents_attention(
            nn.Identity(), *tensors, None, document_starts=starts, sliding_window=window, is_causal=None
        )
        torch.testing.assert_close(got, by_definition(*tensors, STARTS, window), atol=1e-6, rtol=1e-5)


def test_the_scale_of_the_caller_is_used() -> None:
    query, key, value = projections(6)
    got, _ = documents_attention(
        nn.Identity(), query, key, value, None, document_starts=DocumentStarts([0, 6]), scaling=0.5
    )
    expected = by_definition(query * 0.5 * 8**0.5, key, value, [0, 6], None)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({}, "no document starts"),
        ({"document_starts": DocumentStarts([0, 6]), "attention_mask": torch.ones(1, 6)}, "an attention mask"),
        ({"document_starts": DocumentStarts([0, 6]), "softcap": 50.0}, "attention with softcap"),
        ({"document_starts": DocumentStarts([0, 6]), "s_aux": torch.zeros(4)}, "attention with s_aux"),
        ({"document_starts": DocumentStarts([0, 6]), "is_causal": False}, "attention with tokens that see later ones"),
    ],
)
def test_whatever_would_change_the_scores_is_refused(options: dict[str, Any], got: str) -> None:
    options = {"attention_mask": None} | options
    with pytest.raises(ModelError) as caught:
        documents_attention(nn.Identity(), *projections(6), **options)
    assert (caught.value.where, caught.value.got) == ("Identity", got)


def test_a_layer_that_looks_ahead_is_refused() -> None:
    class LooksAhead(nn.Identity):
        is_causal = False

    with pytest.raises(ModelError, match="LooksAhead: attention with tokens that see later ones"):
        documents_attention(LooksAhead(), *projections(6), None, document_starts=DocumentStarts([0, 6]))


def test_starts_that_do_not_cover_the_pack_are_a_mistake_of_ours() -> None:
    with pytest.raises(RuntimeError, match="split_sizes"):
        documents_attention(nn.Identity(), *projections(6), None, document_starts=DocumentStarts([0, 5]))


def test_flex_has_a_forward_pass_on_cpus_and_no_backward_pass_which_is_why_it_is_refused_there() -> None:
    """If torch learns it, this turns red, and the plan may let it be."""
    query, key, value = projections(6, num_groups=4)
    still = [each.detach() for each in (query, key, value)]
    with pytest.warns(UserWarning, match="called without torch.compile"):
        got = flex_attention(*still)
    expected = nn.functional.scaled_dot_product_attention(*still)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        flex_attention(query, key, value)
