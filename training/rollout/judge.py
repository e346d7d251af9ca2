"""A reward model as a reward: the number that its head says after the conversation with the completion at its end."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from training.data.batch import microbatch
from training.data.example import Example, TokenIds
from training.data.sharing import Sizes
from training.errors import ModelError
from training.models.forward import values
from training.models.load import (
    Loaded,
    check_documents_stay_apart,
    check_prompts_can_be_shared,
    load_model,
    load_tokenizer,
)


@dataclass(eq=False)
class _Case:
    """A conversation to judge."""

    example: Example
    """What counts is what follows the prompt, so that others with this prompt can share it."""
    verdict: float | None = None


class RewardModel:
    """reward(prompt, completion), by an export of `reward` or any sequence classifier of one label.

    Each rank has the whole model in float32. It waits until every completion of the rollout has come in, and then
    judges all of them laid end to end, as they are trained on, a prompt once for all completions of it: what it says of
    one depends on the others by rounding alone.
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
        check_documents_stay_apart(loaded.model, self.directory)
        return loaded

    @cached_property
    def _shares_prompts(self) -> bool:
        """Whether the model says the same of a completion whose prompt stands elsewhere in the pack."""
        try:
            check_prompts_can_be_shared(self._loaded.model, self.directory)
        except ModelError:
            return False
        return True

    async def __call__(
        self, prompt: Any, completion: str, *, turns: Sequence[dict[str, Any]] = (), **others: Any
    ) -> float:
        """The reward; as in training, the conversation is rendered by the model's own template, all turns of it.

        Raises:
            ModelError: the model cannot be loaded, or sees one conversation of a pack in another.
        """
        tokenizer = self._loaded.tokenizer
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        whole = _rendered(tokenizer, [*asked, *(turns or [{"role": "assistant", "content": completion}])])
        same = (one == other for one, other in zip(_rendered(tokenizer, asked), whole[:-1], strict=False))
        weights = np.ones(len(whole), dtype=np.float32)
        weights[: max(1, sum(itertools.takewhile(bool, same)))] = 0.0
        case = _Case(Example(whole, weights, "a completion"))
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
        sizes = Sizes([case.example for case in cases], share_prompts=self._shares_prompts)
        for numbers in sizes.packs(max(self.tokens_per_call, *(len(case.example) for case in cases))):
            together = [cases[number] for number in numbers]
            documents = microbatch([case.example for case in together], share_prompts=self._shares_prompts)
            ends = documents.document_starts_D1[1:].long() - 1
            said = values(self._loaded.model, documents.to(self.device), ends.to(self.device))
            for case, verdict in zip(together, said.tolist(), strict=True):
                case.verdict = verdict


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]) -> TokenIds:
    """Token ids of a conversation, as the model's template has it."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False)
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
