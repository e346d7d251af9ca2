"""The battery, run on a model directory: every metric that the task allows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.benchmark import battery
from tests.benchmark.likelihood import Prediction, predictions
from tests.benchmark.sampler import Completion, completions
from tests.benchmark.tasks.task import Data, Problem, Task

NUM_SAMPLED_PROBLEMS, NUM_SAMPLES, K = 50, 8, 4
"""pass@4 out of eight samples at temperature 1, on the first fifty problems: minutes matter here."""

SAMPLING_SEED = 0
"""The same dice for every model, so that what differs was learned."""


@dataclass(frozen=True)
class Measured:
    """One model on the held-out side of a task."""

    scores: list[float]
    """The verifier's mark for each problem's greedy answer."""
    num_right: list[int]
    """Of NUM_SAMPLES answers to each of the first problems, how many are right; empty if none were drawn."""
    predicted: list[list[Prediction]]
    """For each held-out conversation, one for each answer token."""


def measure(directory: Path, task: Task, data: Data, *, samples: bool) -> Measured:
    """Answers and likelihoods of the model in a Hugging Face directory, by transformers alone.

    Args:
        directory: of the model and its tokenizer.
        task: for how long an answer may be.
        data: its held-out side is used.
        samples: False leaves the sampled answers out, which take most of the time.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    asked = [[{"role": "user", "content": problem.question}] for problem in data.problems]
    limit = task.num_new_tokens_max
    greedy = completions(model, tokenizer, asked, num_new_tokens_max=limit)
    sampled = completions(
        model,
        tokenizer,
        asked[:NUM_SAMPLED_PROBLEMS] if samples else [],
        num_new_tokens_max=limit,
        temperature=1.0,
        num_samples=NUM_SAMPLES,
        seed=SAMPLING_SEED,
    )
    return Measured(
        scores=[mark(problem, each) for problem, (each,) in zip(data.problems, greedy, strict=True)],
        num_right=[
            sum(mark(problem, each) >= 1.0 for each in answers)
            for problem, answers in zip(data.problems, sampled, strict=False)
        ],
        predicted=[predictions(model, tokenizer, sample["messages"]) for sample in data.held_out],
    )


def mark(problem: Problem, answer: Completion) -> float:
    """The verifier's mark; an answer that does not end gets none."""
    return problem.score(answer.text.strip()) if answer.is_finished else 0.0


def metrics(trained: Measured, base: Measured) -> dict[str, float]:
    """The battery's figures for the trained model; the win rate is against the one that training started from.

    Exact match and pass@k are there only for a task with problems, pass@k only where answers were sampled.
    """
    tokens = [each for conversation in trained.predicted for each in conversation]
    figures = {
        "perplexity": battery.perplexity([each.surprise for each in tokens]),
        "calibration_error": battery.calibration_error(
            [each.confidence for each in tokens], [each.is_right for each in tokens]
        ),
    }
    if not trained.scores:
        return figures | {"win_rate": battery.win_rate(_log_likelihoods(trained), _log_likelihoods(base))}
    if passed := [battery.pass_at_k(NUM_SAMPLES, num_right, K) for num_right in trained.num_right]:
        figures[f"pass_at_{K}"] = sum(passed) / len(passed)
    return figures | {
        "exact_match": battery.exact_match(trained.scores),
        "win_rate": battery.win_rate(trained.scores, base.scores),
    }


def _log_likelihoods(measured: Measured) -> list[float]:
    """The mean log likelihood per answer token of each held-out conversation."""
    return [-sum(each.surprise for each in tokens) / len(tokens) for tokens in measured.predicted]
