"""What a model says to prompts, greedily: no dice, so that before and after differ by what was learned alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CUT = " …"
"""Ends an answer that was cut off; the model had not finished."""

NOTHING = "(nothing to see)"
"""Stands for an answer of white space alone."""


@torch.no_grad()
def answers(directory: Path, prompts: Sequence[str], *, is_chat: bool, num_new_tokens_max: int) -> list[str]:
    """One answer for each prompt, as text.

    Args:
        directory: a Hugging Face directory of a model with its tokenizer.
        prompts: each is asked by itself, with nothing before it.
        is_chat: the prompt is a user's turn, to be rendered with the chat template; else a beginning to be continued.
        num_new_tokens_max: longest answer.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    result = []
    for prompt in prompts:
        if is_chat:
            turn = [{"role": "user", "content": prompt}]
            inputs = tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            begin = tokenizer.bos_token or ""
            inputs = tokenizer(begin + prompt, add_special_tokens=False, return_tensors="pt")
        num_given = inputs["input_ids"].shape[1]
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=num_new_tokens_max,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        new = output[0, num_given:].tolist()
        finished = tokenizer.eos_token_id in new
        text = readable(tokenizer.decode(new, skip_special_tokens=True)) or NOTHING
        result.append(text + ("" if finished else CUT))
    return result


def readable(text: str) -> str:
    """The text with characters that a terminal cannot show, or would obey, replaced by a dot."""
    return "".join(each if each == "\n" or (each.isprintable() and each != "\ufffd") else "·" for each in text).strip()
