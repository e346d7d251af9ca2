"""Runs a model on a microbatch of packed documents; the one place that knows the keyword arguments for it.

Shapes: T tokens of the microbatch, K positions asked for, V vocabulary.
"""

from torch import Tensor, nn

from training.data.batch import Microbatch


def logits(model: nn.Module, microbatch: Microbatch, at_K: Tensor | None = None) -> Tensor:
    """logits_KV: scores for the token after each position of `at_K`, or after all T positions (then K = T).

    No attention mask and no cache are passed, on purpose: an all-ones mask, a cache, or missing positions each make
    transformers treat the pack as one document, silently. `use_cache` is switched off for the call and left alone in
    the model's config, which an export carries on.

    Goes through the model's own call, whatever wraps it (an adapter, a shard, a replica).
    """
    outputs = model(
        input_ids=microbatch.token_ids_T[None],
        position_ids=microbatch.positions_T[None],
        attention_mask=None,
        use_cache=False,
        logits_to_keep=0 if at_K is None else at_K,
        document_starts=microbatch.document_starts_D1.tolist(),
    )
    logits_1KV: Tensor = outputs.logits
    return logits_1KV[0]
