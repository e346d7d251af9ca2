"""The plan's files made examples to train on and to validate on, and an account of every line."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.data.example import Example
from training.data.loader import fit, permutation
from training.data.render import Rendered
from training.data.samples import SampleFile
from training.data.show import CLOSE, OPEN, brief
from training.errors import DataError
from training.metrics.summary import DataSummary, FileSummary, added
from training.plan import Plan
from training.recipe import Recipe

VALIDATION_DRAW = 2**31
"""Stands for an epoch when held-out samples are drawn, so that the draw is none of the orders of training."""


@dataclass(frozen=True)
class Data:
    """What is trained on, what is validated on, and what became of the rest."""

    training: list[Example]
    validation: list[Example]
    summary: DataSummary


def read_data(plan: Plan, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Data:
    """The examples of the plan's files.

    Raises:
        DataError: a file cannot be read, a sample cannot be used, or too few are left to hold any out.
        TemplateError: the chat template cannot be trusted.
    """
    training, about = recipe.read(plan, tokenizer, plan.data_path)
    files = [about]
    validation: list[Example] = []
    if plan.validation_path is not None:
        validation, about = recipe.read(plan, tokenizer, plan.validation_path)
        files.append(about)
    elif plan.validation_fraction > 0:
        training, validation = _held_out(training, fraction=plan.validation_fraction, seed=plan.seed)
    return Data(
        training,
        validation,
        DataSummary(
            files=files,
            num_training=len(training),
            num_validation=len(validation),
            num_tokens=sum(len(example) for example in training),
            # Of prompts nothing is learned: it is what the model says to them.
            num_weighted_tokens=0 if plan.rl else sum(int(np.count_nonzero(each.weights)) for each in training),
        ),
    )


def described(plan: Plan, data: Data, tokenizer: PreTrainedTokenizerBase) -> str:
    """What became of the files, and the first example as the model will see it: here a wrong template shows."""
    first = data.training[0]
    has_weights = data.summary.num_weighted_tokens > 0
    about = f"{first.where}, {len(first)} tokens"
    if has_weights:
        about += f"; learned is what stands between {OPEN} and {CLOSE}"
    shown = brief(tokenizer, first, has_weights=has_weights).splitlines()
    return "\n".join([data.summary.describe(), f"first       {about}:", *(f"            {line}" for line in shown)])


def _held_out(examples: list[Example], *, fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on and examples held out, each in the order of the file; at least one of both."""
    num_held_out = max(1, round(fraction * len(examples)))
    if num_held_out >= len(examples):
        raise DataError(
            "data.validation_fraction",
            got=f"{fraction:g} of {len(examples)} examples leaves none to train on",
            expected="at least one on each side",
            hint="give more data, a smaller share, or --validation-path",
        )
    drawn = set(permutation(len(examples), seed=seed, epoch=VALIDATION_DRAW)[:num_held_out].tolist())
    training = [example for number, example in enumerate(examples) if number not in drawn]
    return training, [example for number, example in enumerate(examples) if number in drawn]


def fitted(plan: Plan, file: SampleFile[Any], rendered: Rendered) -> tuple[list[Example], FileSummary]:
    """The examples that are short enough, and the fate of each line of the file.

    Raises:
        DataError: an example is too long and the plan says to stop at it, or none is left.
    """
    kept = fit(rendered.examples, tokens_per_sample_max=plan.tokens_per_sample_max, on_long_sample=plan.on_long_sample)
    return kept.examples, FileSummary(
        path=file.path,
        num_samples_read=len(file.samples) + file.num_skipped,
        num_examples=len(kept.examples),
        num_truncated=kept.num_truncated,
        samples_skipped=added(file.skipped_reasons, rendered.skipped_reasons, kept.skipped_reasons),
        first_skipped=file.first_skipped or rendered.first_skipped,
        keys_ignored=added(file.ignored_keys),
    )
