"""What a model says of held-out pairs: how likely it finds each completion, or what its head gives it.

By transformers alone, one conversation at a time, as in `tests.benchmark.likelihood` and for the same reason.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.benchmark.battery import win_rate
from tests.benchmark.likelihood import predictions
from tests.benchmark.sampler import Messages
from tests.benchmark.tasks.task import Sample


class Scores(NamedTuple):
    """What one model gives the two completions of a pair."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """By how much chosen is ahead."""
        return self.chosen - self.rejected


def log_likelihoods(directory: Path, pairs: Sequence[Sample]) -> list[Scores]:
    """Log p of both completions of each pair, in nats, under the language model in a Hugging Face directory."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def said(messages: Messages) -> float:
        return -math.fsum(each.surprise for each in predictions(model, tokenizer, messages))

    return [Scores(*(said(each) for each in conversations(pair))) for pair in pairs]


@torch.no_grad()
def rewards(directory: Path, pairs: Sequence[Sample]) -> list[Scores]:
    """What the reward model in a Hugging Face directory gives both completions, after their last token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    assert model.config.num_labels == 1, "a reward is one number"

    def said(messages: Messages) -> float:
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    return [Scores(*(said(each) for each in conversations(pair))) for pair in pairs]


def conversations(pair: Sample) -> tuple[Messages, Messages]:
    """The question with the chosen answer, and with the rejected one."""
    chosen, rejected = (
        [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
        for side in ("chosen", "rejected")
    )
    return chosen, rejected


def preference_figures(trained: Sequence[Scores], base: Sequence[Scores]) -> dict[str, float]:
    """How far training has moved the model towards what was chosen, from the log-likelihoods of both.

    With s the log-likelihood under the trained model and s_ref that under the one it started from, the reward margin
    is the mean of

        δ = s(y⁺) − s(y⁻) − (s_ref(y⁺) − s_ref(y⁻))        in nats: DPO's, before β scales it (arXiv 2305.18290)

    and the win rate is the share of pairs in which δ is above 0, a tie counting half.
    """
    margins, before = [each.margin for each in trained], [each.margin for each in base]
    return {
        "reward_margin": fmean(one - other for one, other in zip(margins, before, strict=True)),
        "win_rate": win_rate(margins, before),
        "pairs_right": pairs_right(trained),
    }


def ranking_figures(scores: Sequence[Scores]) -> dict[str, float]:
    """How a reward model ranks the pairs: the share that it gets right, and the mean of −log σ(r(y⁺) − r(y⁻))."""
    return {
        "pairs_right": pairs_right(scores),
        "pair_surprise": fmean(_softplus(-each.margin) for each in scores),
    }


def pairs_right(scores: Sequence[Scores]) -> float:
    """Share of the pairs in which chosen is ahead; a tie counts half."""
    return win_rate([each.chosen for each in scores], [each.rejected for each in scores])


def _softplus(x: float) -> float:
    """log(1 + exp x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
