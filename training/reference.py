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

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from training.algorithms.algorithm import Logprobs
from training.algorithms.preference import REFERENCE
from training.checkpoint.state import arrays_digest
from training.data.example import Example
from training.errors import ModelError
from training.models.forward import logprobs
from training.models.head import chunked_head
from training.models.load import load_model
from training.models.quantize import nf4
from training.parallel.backend import Backend
from training.parallel.scores import scores
from training.plan import Plan
from training.whole import whole

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
            with whole(file) as beside:
                save_file(values, beside, metadata={"examples": digest})
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
    tokens = plan.tokens_per_rank_max if plan.packing else None
    with left_out:
        return {
            name: np.concatenate(
                [
                    np.zeros(0, dtype=np.float32),
                    *scores(
                        examples,
                        scored,
                        model=model,
                        backend=backend,
                        tokens_per_rank_max=tokens,
                        share_prompts=plan.share_prompts,
                        keep=_of_documents,
                    ),
                ]
            )
            for name, examples in sets.items()
        }


def _of_documents(example: Example, said_T1: NDArray[np.float32]) -> NDArray[np.float32]:
    """The log-probability of each document: the weighted sum over its tokens."""
    return np.add.reduceat(said_T1[:, 0] * example.weights, example.document_starts)


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
