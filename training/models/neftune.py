"""Noise on the embeddings of what is trained on (NEFTune, arXiv 2310.05914).

    e_t ← e_t + alpha / √(L d) · u        u ~ Uniform(−1, 1)^d, L tokens in the document of t, d numbers in an embedding

The paper's L is the length to which a batch is padded, so that the noise on one sample depends on the others beside it.
Here it is the length of the sample's own document, and how documents are packed does not matter. (Of a document alone,
both are the same.)

Drawn from torch's global generator, whose state is in every checkpoint. Nothing is added while a model is evaluated.
"""

from typing import Any

import torch
from torch import Tensor, nn

from training.models.attention import DocumentStarts


def add_noise(model: nn.Module, alpha: float) -> None:
    """Has the model's embeddings get noise of strength `alpha` in training, from now on.

    Args:
        model: a causal language model of transformers, not yet wrapped.
        alpha: 5 to 15 in the paper.
    """
    noise = _Noise(alpha)
    backbone: nn.Module = model.base_model  # type: ignore[assignment]  # that of transformers, not a tensor
    backbone.register_forward_pre_hook(noise.see_documents, with_kwargs=True)
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]  # the same
    embeddings.register_forward_hook(noise.add)


class _Noise:
    """What the two hooks share: the documents of the call that is going on."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.document_starts = DocumentStarts([])

    def see_documents(self, module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> None:
        self.document_starts = keywords.get("document_starts", DocumentStarts([]))

    def add(self, module: nn.Module, inputs: Any, embeddings_1TD: Tensor) -> Tensor:
        if not module.training:
            return embeddings_1TD
        starts = torch.tensor(self.document_starts.positions, device=embeddings_1TD.device)
        lengths = starts.diff()
        length_T1 = lengths.repeat_interleave(lengths)[:, None]
        strength_T1 = self.alpha / (length_T1 * embeddings_1TD.shape[-1]).sqrt()
        return embeddings_1TD + strength_T1 * torch.empty_like(embeddings_1TD).uniform_(-1.0, 1.0)
