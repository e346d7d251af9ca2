"""A reward model as a reward: the number that its head says after the conversation with the completion at its end."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from training.data.batch import Microbatch
from training.data.pack import pack
from training.models.forward import values
from training.models.load import Loaded, load_model, load_tokenizer


@dataclass(eq=False)
class _Case:
    """A conversation to judge."""

    token_ids_T: Tensor  # noqa: N815 - tensors end in their shape, as fields too
    verdict: float | None = None


class RewardModel:
    """reward(prompt, completion), by an export of `reward` or any sequence classifier of one label.

    Each rank has the whole model in float32. It waits until every completion of the rollout has come in, and then
    judges all of them laid end to end, as they are trained on: what it says of one depends on the others by rounding
    alone.
    """

    def __init__(self, directory: str, *, tokens_per_call: int = 4096, device: torch.device | str = "cpu") -> None:
        """Checks that there is a tokenizer with a chat template; weights are read when the first completion comes.

        Args:
            directory: of the model and its tokenizer.
            tokens_per_call: that are judged at a time; a longer conversation goes alone.
            device: where the model computes.

        Raises:
            ModelError: there is none.
        """
        load_tokenizer(directory)
        self.directory, self.tokens_per_call, self.device = directory, tokens_per_call, device
        self._waiting: list[_Case] = []

    @cached_property
    def _loaded(self) -> Loaded:
        loaded = load_model(self.directory, device=self.device, head="value")
        loaded.model.train(mode=False).requires_grad_(requires_grad=False)
        return loaded

    async def __call__(
        self, prompt: Any, completion: str, *, turns: Sequence[dict[str, Any]] = (), **others: Any
    ) -> float:
        """The reward; as in training, the conversation is rendered by the model's own template, all turns of it."""
        tokenizer = self._loaded.tokenizer
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        messages += turns or [{"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        case = _Case(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]))
        together = self._waiting
        together.append(case)
        # Whoever is first to go on judges all that have come in meanwhile. If that fails, it does so for each of them.
        await asyncio.sleep(0)
        if case.verdict is None:
            self._waiting = []
            self._judge(together)
        assert case.verdict is not None
        return case.verdict

    @torch.no_grad()
    def _judge(self, cases: list[_Case]) -> None:
        lengths = [len(case.token_ids_T) for case in cases]
        for numbers in pack(lengths, max(self.tokens_per_call, *lengths)):
            together = [cases[number] for number in numbers]
            ends = torch.tensor([len(case.token_ids_T) for case in together]).cumsum(0)
            documents = Microbatch(
                torch.cat([case.token_ids_T for case in together]),
                torch.cat([torch.arange(len(case.token_ids_T)) for case in together]),
                torch.ones(int(ends[-1])),
                torch.cat([torch.zeros(1, dtype=ends.dtype), ends]),
            )
            said = values(self._loaded.model, documents.to(self.device), (ends - 1).to(self.device))
            for case, verdict in zip(together, said.tolist(), strict=True):
                case.verdict = verdict
