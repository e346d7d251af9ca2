"""A reward model as a reward: the number that its head says after the conversation with the completion at its end."""

from functools import cached_property
from typing import Any

import torch

from training.data.batch import Microbatch
from training.models.forward import values
from training.models.load import Loaded, load_model, load_tokenizer


class RewardModel:
    """reward(prompt, completion), by an export of `reward` or any sequence classifier of one label.

    Each rank has the whole model in float32, and gives it one completion at a time: what it says does not depend on
    how ranks share the work.
    """

    def __init__(self, directory: str, *, device: torch.device | str = "cpu") -> None:
        """Checks that there is a tokenizer with a chat template; weights are read when the first completion comes.

        Raises:
            ModelError: there is none.
        """
        load_tokenizer(directory)
        self.directory, self.device = directory, device

    @cached_property
    def _loaded(self) -> Loaded:
        loaded = load_model(self.directory, device=self.device, head="value")
        loaded.model.train(mode=False).requires_grad_(requires_grad=False)
        return loaded

    @torch.no_grad()
    def __call__(self, prompt: Any, completion: str, **others: Any) -> float:
        """The reward; as in training, the conversation is rendered by the model's own template."""
        model, tokenizer = self._loaded
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": completion}], tokenize=False)
        ids_T = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        num = len(ids_T)
        document = Microbatch(ids_T, torch.arange(num), torch.ones(num), torch.tensor([0, num])).to(self.device)
        return values(model, document, torch.tensor([num - 1], device=self.device)).item()
