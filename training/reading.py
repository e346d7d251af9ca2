"""Samples of a file made examples that fit, and an account of those that were not; what recipes of any kind share."""

from typing import Any

from training.data.example import Example
from training.data.loader import fit
from training.data.render import Rendered
from training.data.samples import SampleFile
from training.metrics.summary import FileSummary, added
from training.plan import Plan


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
