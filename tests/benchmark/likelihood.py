"""How likely a model finds held-out answers, token by token.

Computed the long way round on purpose: one conversation at a time, transformers' own attention and own mask, and the
answer's tokens found by comparing prefixes. Nothing of `training` takes part, so a fault in its rendering, its packing
or its shift cannot hide behind the same fault here. `//tests/unit/benchmark:likelihood_test` holds the two against each
other.
"""

from typing import Any, NamedTuple

import torch

from tests.benchmark.sampler import Messages, prompt_ids


class Prediction(NamedTuple):
    """What the model thought of one answer token, given the true tokens before it."""

    surprise: float
    """−log p of the token, in nats."""
    confidence: float
    """Probability of the token that it found likeliest."""
    is_right: bool
    """True if that was the token."""


@torch.no_grad()
def predictions(model: Any, tokenizer: Any, messages: Messages) -> list[Prediction]:
    """One prediction for each token that the assistant writes in the conversation, the end of its turns included."""
    ids, answers = answer_places(tokenizer, messages)
    logits_TV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    log_p_KV = torch.log_softmax(logits_TV[torch.tensor(answers) - 1], dim=-1)
    targets_K = torch.tensor([ids[at] for at in answers])
    surprises = -log_p_KV.gather(1, targets_K[:, None])[:, 0]
    best = log_p_KV.max(dim=-1)
    return [
        Prediction(*each)
        for each in zip(
            surprises.tolist(), best.values.exp().tolist(), (best.indices == targets_K).tolist(), strict=True
        )
    ]


def answer_places(tokenizer: Any, messages: Messages) -> tuple[list[int], list[int]]:
    """The conversation's tokens, and the indices of those that the assistant writes."""
    ids = [int(each) for each in tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]]
    places: list[int] = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = prompt_ids(tokenizer, messages[:number])
            assert ids[: len(before)] == before, "the template renders the beginning differently when more follows"
            places += range(len(before), ids.index(tokenizer.eos_token_id, len(before)) + 1)
    return ids, places
