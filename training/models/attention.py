"""Attention of each packed document to itself alone, as an entry in transformers' attention interface.

transformers' own sdpa and eager attention keep packed documents apart with a dense T × T mask. Here the pack is cut at
the document starts and each piece goes through causal attention by itself: the same numbers, without the mask and
without the products that it would throw away. The gap grows with the pack: about 1.5 times the speed at 1,024 tokens
and 3 times at 4,096, on CPU.

A document may leave its first tokens to an earlier one that begins with the same (`training.data.sharing`): its queries
go to their keys and its own.

Shapes, transformers' order: B = 1 (a pack is one row), H heads, T tokens, D size of a head.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from training.errors import ModelError

DOCUMENTS = "documents"

BLOCK = 256
"""Queries that are computed together where a mask has to say what each sees."""
Block = tuple[slice, slice, Tensor | None]
"""Some queries of a document, the keys that one of them sees, and which of them sees which; None: all before it."""

NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "indices")
"""Arguments by which some architectures change the scores; ignoring one would train another model."""


class DocumentStarts:
    """Where the documents of a pack begin, as a model hands it down to its attention.

    An object and no list, for code that is compiled is compiled anew for each length of a list.
    """

    def __init__(self, positions: list[int], prompts: Sequence[tuple[int, int]] = ()) -> None:
        """Says where, and after what.

        Args:
            positions: the first position of each document, and at the end the number of tokens: [0, …, T].
            prompts: of each document, an earlier one whose first tokens it also sees, and how many; empty: of none.
        """
        self.positions = positions
        self.prompts = prompts or [(0, 0)] * (len(positions) - 1)
        self._blocks: dict[tuple[int, int | None], list[Block]] = {}

    def blocks(self, document: int, sliding_window: int | None, device: torch.device) -> list[Block]:
        """How a document's queries are computed; found for the first layer that asks, and the same for all of them."""
        key = document, sliding_window
        if key not in self._blocks:
            num_tokens = self.positions[document + 1] - self.positions[document]
            self._blocks[key] = list(_blocks(num_tokens, self.prompts[document][1], sliding_window, device))
        return self._blocks[key]


def documents_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    document_starts: DocumentStarts | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention output [1, T, H, D]; no weights, as the interface allows.

    Args:
        module: the calling layer, for error messages.
        query_1HTD: queries of H heads.
        key_1GTD: keys of G heads; G divides H.
        value_1GTD: values of G heads.
        attention_mask: must be None.
        scaling: factor of the scores; None means 1 / √D.
        dropout: probability of dropping a weight.
        document_starts: passed by `training.models.forward` through the model's keyword arguments.
        sliding_window: positions a token sees, itself included; None means all before it in its document.
        others: ignored unless they would change the scores.

    Raises:
        ModelError: called without document starts, with a mask, or by an architecture that needs more than this.
    """
    changed = [name for name in NOT_COMPUTED if others.get(name) is not None]
    if changed or others.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise ModelError(
            type(module).__name__,
            got=f"attention with {', '.join(changed) or 'tokens that see later ones'}",
            expected="plain causal attention, which is all that attention per document computes",
            hint="choose --model.attention=eager, or sdpa where the architecture supports it",
        )
    if document_starts is None or attention_mask is not None:
        raise ModelError(
            type(module).__name__,
            got="no document starts" if document_starts is None else "an attention mask",
            expected="the document starts of a pack and no mask",
            hint="call training.models.forward.logits; to generate, set_attn_implementation('sdpa') first",
        )
    lengths = [end - start for start, end in itertools.pairwise(document_starts.positions)]
    queries, keys, values = (tensor.split_with_sizes(lengths, dim=2) for tensor in (query_1HTD, key_1GTD, value_1GTD))
    pieces = []
    for document, (query, key, value) in enumerate(zip(queries, keys, values, strict=True)):
        other, num_before = document_starts.prompts[document]
        if num_before:
            key = torch.cat([keys[other][:, :, :num_before], key], dim=2)
            value = torch.cat([values[other][:, :, :num_before], value], dim=2)
        for at, seen, mask in document_starts.blocks(document, sliding_window, query.device):
            pieces.append(
                nn.functional.scaled_dot_product_attention(
                    query[:, :, at],
                    key[:, :, seen],
                    value[:, :, seen],
                    attn_mask=mask,
                    dropout_p=dropout,
                    is_causal=mask is None,
                    scale=scaling,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _blocks(num_tokens: int, num_before: int, sliding_window: int | None, device: torch.device) -> Iterator[Block]:
    """A document's queries in blocks.

    Where causal attention says it all, that is one block without a mask. Else a block has a mask, and no keys that none
    of it sees, so that what is computed in vain is half a block wide however long the document.
    """
    if num_before == 0 and (sliding_window is None or num_tokens <= sliding_window):
        yield slice(None), slice(None), None
        return
    for first in range(0, num_tokens, BLOCK):
        last = min(first + BLOCK, num_tokens)
        oldest = 0 if sliding_window is None else max(0, num_before + first + 1 - sliding_window)
        mine = torch.arange(num_before + first, num_before + last, device=device)[:, None]
        theirs = torch.arange(oldest, num_before + last, device=device)
        mask = theirs <= mine
        if sliding_window is not None:
            mask &= theirs > mine - sliding_window
        yield slice(first, last), slice(oldest, num_before + last), mask


AttentionInterface.register(DOCUMENTS, documents_attention)
