"""Answers of a model to many prompts at once, through transformers' generate with its cache of keys and values.

Prompts are padded on the left, those of like length together. Greedy answers do not depend on what shares a batch, up
to rounding; sampled ones do, and are the same for the same seed, prompts and batch size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

SEQUENCES_PER_BATCH = 128

Messages = list[dict[str, str]]


class Completion(NamedTuple):
    """One answer."""

    text: str
    is_finished: bool
    """False if it was cut off: the model had not said that it ends here."""


@torch.no_grad()
def completions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    *,
    num_new_tokens_max: int,
    temperature: float | None = None,
    num_samples: int = 1,
    seed: int = 0,
    sequences_per_batch: int = SEQUENCES_PER_BATCH,
) -> list[list[Completion]]:
    """The answers to each prompt, in the order of the prompts.

    Args:
        model: a causal language model in evaluation mode, with transformers' own attention.
        tokenizer: with a chat template and a token that ends a turn.
        prompts: conversations that end before the assistant's turn.
        num_new_tokens_max: longest answer.
        temperature: None takes the likeliest token each time; 1.0 draws from the model's own probabilities.
        num_samples: answers to each prompt; more than one only makes sense with a temperature.
        seed: of the draws. torch's global generator is left as it was.
        sequences_per_batch: how many answers are written at once.
    """
    assert not model.training
    assert num_samples == 1 or temperature is not None, "greedy answers would all be the same"
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    settings = GenerationConfig(
        max_new_tokens=num_new_tokens_max,
        do_sample=temperature is not None,
        temperature=temperature,
        top_k=0 if temperature is not None else None,
        top_p=None,
        num_return_sequences=num_samples,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    answers: dict[int, list[Completion]] = {}
    order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
    per_batch = max(1, sequences_per_batch // num_samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for begin in range(0, len(order), per_batch):
            batch = order[begin : begin + per_batch]
            width = max(len(ids[at]) for at in batch)
            padded = [[tokenizer.eos_token_id] * (width - len(ids[at])) + ids[at] for at in batch]
            mask = [[0] * (width - len(ids[at])) + [1] * len(ids[at]) for at in batch]
            output = model.generate(
                input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask), generation_config=settings
            )
            new = output[:, width:].tolist()
            for number, at in enumerate(batch):
                mine = new[number * num_samples : (number + 1) * num_samples]
                answers[at] = [_completion(tokenizer, each) for each in mine]
    return [answers[at] for at in range(len(ids))]


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """The tokens of a conversation up to where the assistant begins to write."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    return [int(each) for each in ids]


def _completion(tokenizer: Any, ids: list[int]) -> Completion:
    is_finished = tokenizer.eos_token_id in ids
    said = ids[: ids.index(tokenizer.eos_token_id)] if is_finished else ids
    return Completion(str(tokenizer.decode(said, skip_special_tokens=True)), is_finished)
