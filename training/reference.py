"""Log-probabilities by a model that is not trained, computed once before the first step and kept with the run.

    initial    the trained model as it is before its first step
    adapter    the model under the adapter
    a path     another model, with the same tokenizer; each rank loads all of it for as long as this takes

All three go through the backend, so the numbers have the arithmetic of training: where nothing has been learned yet,
the model's own log-probabilities are these, up to rounding. Dropout and noise are off.

A run that goes on reads what its first process has written, since by then the initial model is gone. That it is the
same is seen by the digest of the examples in each checkpoint, which covers their columns. If the file is not there, it
is computed anew: a run that goes on has the initial weights, too, until its checkpoint is restored.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from training.algorithms.algorithm import Logprobs
from training.algorithms.preference import REFERENCE, document_logprobs
from training.checkpoint.state import arrays_digest
from training.data.batch import microbatch
from training.data.example import Example
from training.data.pack import pack
from training.errors import ModelError
from training.models.forward import logprobs
from training.models.head import chunked_head
from training.models.load import load_model
from training.models.quantize import nf4
from training.parallel.backend import Backend
from training.plan import Plan

Values = dict[str, NDArray[np.float32]]
"""For each set of examples, the log-probability of each of their documents."""


def with_reference(
    plan: Plan,
    sets: dict[str, list[Example]],
    *,
    model: nn.Module,
    scored: Logprobs,
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    goes_on: bool,
) -> dict[str, list[Example]]:
    """The sets of examples, each example with the column `reference_logprob_D`. All ranks must call it.

    Args:
        plan: which model is the reference, and how it is run.
        sets: all examples, by what they are for.
        model: the trained model as the backend has wrapped it, with its initial weights.
        scored: its log-probabilities.
        backend: what the ranks share.
        tokenizer: of the trained model.
        goes_on: true if the run has taken steps before.

    Raises:
        ModelError: the reference is a path and cannot be loaded, or has another tokenizer.
    """
    file = Path(plan.out) / "reference.safetensors"
    digest = arrays_digest(
        array
        for examples in sets.values()
        for each in examples
        for array in (each.token_ids, each.weights, each.document_starts)
    )
    values: Values | None = backend.gather(_read(file, digest) if goes_on and backend.rank == 0 else None)[0]
    if values is None:
        values = _computed(plan, sets, model, scored, backend, tokenizer)
        if backend.rank == 0:
            beside = file.with_suffix(".tmp")
            save_file(values, beside, metadata={"examples": digest})
            beside.replace(file)
    filled = {}
    for name, examples in sets.items():
        bounds = np.cumsum([0, *(len(each.document_starts) for each in examples)])
        filled[name] = [
            replace(each, columns={**each.columns, REFERENCE: values[name][start:end]})
            for each, start, end in zip(examples, bounds[:-1], bounds[1:], strict=True)
        ]
    return filled


def _read(file: Path, digest: str) -> Values | None:
    """What the file holds for these examples; None if it is not there, damaged, or of others."""
    try:
        with safe_open(file, framework="numpy") as opened:
            if opened.metadata() != {"examples": digest}:
                return None
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError):
        return None


def _computed(
    plan: Plan,
    sets: dict[str, list[Example]],
    model: nn.Module,
    scored: Logprobs,
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
) -> Values:
    left_out: Any = nullcontext()
    if plan.reference == "adapter":
        left_out = model.disable_adapter()  # type: ignore[operator]  # of peft, which the plan has seen to
    elif plan.reference != "initial":
        model, scored = _other(plan, backend, tokenizer)
    was_training = model.training
    model.eval()
    with left_out, torch.no_grad():
        values = {
            name: reference_logprobs(
                examples,
                scored,
                backend,
                tokens_per_rank_max=plan.tokens_per_rank_max if plan.packing else None,
            )
            for name, examples in sets.items()
        }
    model.train(was_training)
    return values


def _other(plan: Plan, backend: Backend, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Logprobs]:
    """The model that the plan names, whole on this rank, and its log-probabilities."""
    assert plan.reference
    model: nn.Module
    model, theirs = load_model(
        plan.reference,
        attention=plan.attention,
        device=backend.device,
        quantization=nf4(plan.precision) if plan.quantization == "nf4" else None,
        needs_chat_template=False,
    )
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            plan.reference,
            got="the reference has another vocabulary than the model",
            expected="the same tokens, as their log-probabilities are compared",
            hint="take a model of the same family, or leave --reference out",
        )
    head = chunked_head(model, plan.loss_chunk_tokens, plan.reference) if plan.loss_chunk_tokens else None
    return model, partial(logprobs, model, head=head)


def reference_logprobs(
    examples: Sequence[Example], scored: Callable[..., Any], backend: Backend, *, tokens_per_rank_max: int | None
) -> NDArray[np.float32]:
    """The log-probability of each document of the examples, in order: the weighted sum over its tokens.

    Packs do not depend on the number of ranks, and every rank runs the model equally often: one that has no pack left
    runs the last one once more, since the others may wait for its part of the weights.

    Args:
        examples: as they will be trained on.
        scored: log-probabilities of the reference.
        backend: whose ranks share the work.
        tokens_per_rank_max: tokens of a pack; None runs each example by itself.
    """
    packs = [[number] for number in range(len(examples))]
    if tokens_per_rank_max is not None and examples:
        packs = pack([len(each) for each in examples], tokens_per_rank_max)
    mine: dict[int, NDArray[np.float32]] = {}
    for first in range(0, len(packs), backend.num_ranks):
        members = packs[min(first + backend.rank, len(packs) - 1)]
        together = microbatch([examples[number] for number in members]).to(backend.device)
        with backend.computing():
            sums_D, _ = document_logprobs(scored, together)
        counts = [len(examples[number].document_starts) for number in members]
        for number, part in zip(members, sums_D.float().cpu().split_with_sizes(counts), strict=True):
            mine[number] = part.numpy()
    of_all: dict[int, NDArray[np.float32]] = {}
    # Rank 0 last: what two have computed is the same up to rounding, and all must have the same.
    for each in reversed(backend.gather(mine)):
        of_all |= each
    return np.concatenate([of_all[number] for number in range(len(examples))] or [np.zeros(0, dtype=np.float32)])
