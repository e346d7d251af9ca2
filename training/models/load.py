"""Loads a causal language model and its tokenizer, or says why they cannot be trained.

What other trainers let pass, and what is refused here: weights that the checkpoint lacks (transformers fills them in at
random and warns), a tokenizer with more tokens than the model has embeddings (an index error deep in the first step, or
worse on an accelerator), experts whose settings would be ignored, and, once the model is where it is trained, an
architecture that lets packed documents see each other, or not the prompt that they share.
"""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.data.batch import Microbatch
from training.errors import ModelError
from training.models import attention as attention_per_document
from training.models.forward import evaluating, logits

Attention = Literal["documents", "sdpa", "eager", "flex", "flash"]
IMPLEMENTATIONS: dict[Attention, str] = {"flex": "flex_attention", "flash": "flash_attention_2"}
"""What transformers calls them, where it is something else."""
Head = Literal["language", "value", "new value"]
"""What a model says: scores over the vocabulary, or one value. A new one is drawn from torch's global generator if the
checkpoint has none. Laid out as transformers' sequence classifier of one label, which anybody can load."""

LEAK_EPSILONS = 8
"""Change of a logit, in machine epsilons of the largest, that still counts as rounding. Experts that see
fewer tokens round otherwise: by 1.8. A leak shows as millions in fp32, as 170 in bf16."""
SHARED_RELATIVE = 1e-4
"""The same where another kernel of attention computes it, of the largest logit, if that is more: in fp32, roundings of
many layers. A prompt that is not seen moves it by tenths."""


class Loaded(NamedTuple):
    """A model in training mode and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_tokenizer(path: str, *, needs_chat_template: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or hub name.

    Raises:
        ModelError: there is none, it cannot be read, or it has no chat template and one is needed.
    """
    place = _place(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
    except Exception as error:
        # Anything may surface here: OSError for missing files, ValueError or a bare Exception for broken ones.
        raise _not_loaded("tokenizer", path, error) from error
    if needs_chat_template and not tokenizer.chat_template:
        raise ModelError(
            path,
            got="the tokenizer has no chat template",
            expected="a template that turns messages into text",
            hint="use the model's instruct variant, put a chat_template.jinja beside the tokenizer, or train on plain "
            "text with --data.kind=text",
        )
    return tokenizer


def load_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    attention: Attention = "documents",
    device: torch.device | str = "cpu",
    quantization: BitsAndBytesConfig | None = None,
    needs_chat_template: bool = True,
    head: Head = "language",
) -> Loaded:
    """The model and tokenizer of a local directory or hub name, checked to belong together.

    Args:
        path: a directory in Hugging Face layout, or a hub name, for which the hub or its cache must be reachable.
        dtype: of the weights. Training wants float32, and autocast for the arithmetic.
        attention: `documents` attends per packed document; the others are transformers' own.
        device: where the weights go.
        quantization: of linear layers, which then cannot be trained; an adapter on them can.
        needs_chat_template: False for training on plain text.
        head: see `Head`.

    Raises:
        ModelError: one of the two cannot be loaded, or they do not fit.
    """
    tokenizer = load_tokenizer(path, needs_chat_template=needs_chat_template)
    assert attention_per_document.DOCUMENTS == "documents"
    try:
        # Sizes that do not match are let through, to be refused by name below. The result is a pair because of
        # output_loading_info; the declared type knows only of the model.
        kind = AutoModelForSequenceClassification if head != "language" else AutoModelForCausalLM
        pair: Any = kind.from_pretrained(
            _place(path),
            dtype=dtype,
            attn_implementation=IMPLEMENTATIONS.get(attention, attention),
            quantization_config=quantization,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **({"num_labels": 1} if head != "language" else {}),
        )
    except Exception as error:
        raise _not_loaded("model", path, error) from error
    model: PreTrainedModel = pair[0]
    if head == "new value":
        pair[1]["missing_keys"].discard("score.weight")
    if head != "language":
        # In a batch such a model looks for the last token that is no padding: a pad that ends documents would hide it.
        pad = tokenizer.pad_token_id
        model.config.pad_token_id = pad if pad != tokenizer.eos_token_id else None
    _check_complete(path, pair[1])
    _check_vocabulary(path, model, tokenizer)
    _check_experts(path, model, in_4_bits=quantization is not None)
    leave_as_stored(model)
    module: nn.Module = model
    module.to(device)
    return Loaded(model.train(), tokenizer)


def leave_as_stored(model: nn.Module) -> None:
    """Keeps evaluation from rearranging 4-bit weights in place for a kernel that CPUs with AVX-512 BF16 have.

    Their scales would be rounded to bf16 for good, so that they had another digest and could not be trained under; and
    rows shorter than a block, as tiny models have them, cannot be rearranged at all.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def check_documents_stay_apart(model: nn.Module, where: str) -> None:
    """Runs two packed documents of three tokens twice, with another first document the second time.

    The second document's logits must not move. This is the question itself, so it holds for architectures that nobody
    here has heard of: those that ignore positions, carry a state from token to token, or bring their own attention.

    Asked of a model in the place and the arithmetic in which it is trained, as kernels of attention differ with both.
    All ranks call it.

    Raises:
        ModelError: the second document saw the first.
    """
    with evaluating(model), torch.no_grad():
        one, other = (_logits_of_second(model, first, where) for first in ([0, 1, 2], [3, 4, 5]))
    rounding = LEAK_EPSILONS * torch.finfo(one.dtype).eps * one.abs().max()
    change = (one.float() - other.float()).abs().max()
    if not change <= rounding:
        raise ModelError(
            where,
            got=f"{type(model).__name__} lets a packed document see the one before it (logits move by {change:.2g})",
            expected="a model that keeps packed documents apart",
            hint="try another --model.attention; an architecture that carries a state between tokens cannot be packed",
        )


def check_prompts_can_be_shared(model: nn.Module, where: str) -> None:
    """Runs two documents with one prompt, in whole and with the prompt once; the second's logits must be the same.

    Asked as `check_documents_stay_apart` asks, and after it.

    Raises:
        ModelError: they are not.
    """
    apart = _documents_of([0, 1, 2, 3, 0, 1, 4, 5], starts=[0, 4, 8])
    once = replace(
        apart,
        token_ids_T=torch.tensor([0, 1, 2, 3, 4, 5]),
        positions_T=torch.tensor([0, 1, 2, 3, 2, 3]),
        weights_T=torch.zeros(6),
        document_starts_D1=torch.tensor([0, 4, 6], dtype=torch.int32),
        prompts=((0, 0), (0, 2)),
    )
    with evaluating(model), torch.no_grad():
        one, other = (_logits(model, each, where)[-2:] for each in (apart, once))
    rounding = max(LEAK_EPSILONS * torch.finfo(one.dtype).eps, SHARED_RELATIVE) * one.abs().max()
    change = (one.float() - other.float()).abs().max()
    if not change <= rounding:
        raise ModelError(
            where,
            got=f"{type(model).__name__} reads a shared prompt otherwise than one of its own (logits move by "
            f"{change:.2g})",
            expected="a model that a token's position and what attention shows it say everything to",
            hint="add --share-prompts false",
        )


def _logits_of_second(model: nn.Module, first: list[int], where: str) -> torch.Tensor:
    return _logits(model, _documents_of([*first, 1, 2, 3], starts=[0, 3, 6]), where)[3:]


def _documents_of(token_ids: list[int], starts: list[int]) -> Microbatch:
    return Microbatch(
        token_ids_T=torch.tensor(token_ids),
        positions_T=torch.cat([torch.arange(end - start) for start, end in itertools.pairwise(starts)]),
        weights_T=torch.zeros(len(token_ids)),
        document_starts_D1=torch.tensor(starts, dtype=torch.int32),
    )


def _logits(model: nn.Module, microbatch: Microbatch, where: str) -> torch.Tensor:
    try:
        return logits(model, microbatch.to(next(model.parameters()).device))
    except (TypeError, KeyError) as error:
        raise ModelError(
            where,
            got=f"{type(model).__name__} cannot be run on packed documents ({type(error).__name__}: {error})",
            expected="an architecture that passes keyword arguments on to an attention of one's choice",
            hint="choose another model of the same family, or a newer transformers",
        ) from error


def _place(path: str) -> str:
    """The path, with ~ resolved, or the hub name. Tells a mistyped directory from a hub name; transformers does not."""
    place = Path(path).expanduser()
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise ModelError(
                path,
                got="the directory has no config.json",
                expected="a model in Hugging Face layout (config.json, model.safetensors, tokenizer.json)",
                hint="point at the directory that save_pretrained wrote; of an adapter, at its merged export",
            )
    elif place.exists() or looks_local:
        raise ModelError(
            path,
            got="it is a file" if place.exists() else "there is no such directory",
            expected="a model directory or a hub name such as owner/name",
            hint="check the path; relative paths start where the command was typed",
        )
    return str(place) if place.is_dir() else path


def _not_loaded(what: str, path: str, error: Exception) -> ModelError:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    is_local = Path(path).expanduser().is_dir()
    return ModelError(
        path,
        got=f"the {what} cannot be loaded ({cause})",
        expected=f"{'a causal language model' if what == 'model' else 'the tokenizer of a causal language model'}"
        + (" in the directory" if is_local else ", in this machine's hub cache or on a reachable hub"),
        hint="check that the download is complete and that this transformers knows the architecture"
        if is_local
        else "without a network, download it elsewhere with `hf download` and give the directory",
    )


def _check_complete(path: str, info: dict[str, Any]) -> None:
    lacking = sorted(str(key) for key in info["missing_keys"])
    other_shape = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if lacking or other_shape:
        named = lacking or other_shape
        raise ModelError(
            path,
            got=f"the checkpoint {'lacks' if lacking else 'has another shape for'} {len(named)} weights, among them "
            f"{named[0]}",
            expected="a value for every weight of the model; transformers would draw these at random",
            hint="check that the download is complete and that config.json belongs to these weights",
        )


def _check_vocabulary(path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings.weight, torch.Tensor)
    num_embeddings = embeddings.weight.shape[0]
    if len(tokenizer) > num_embeddings:
        raise ModelError(
            path,
            got=f"the tokenizer has {len(tokenizer)} tokens and the model {num_embeddings} embeddings",
            expected="no more tokens than embeddings",
            hint="use the tokenizer that came with the model, or resize_token_embeddings and save both",
        )


def _check_experts(path: str, model: PreTrainedModel, *, in_4_bits: bool) -> None:
    """Refuses what is asked for of a mixture of experts and would be ignored in silence."""
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        raise ModelError(
            path,
            got="config.json has output_router_logits, which adds a loss of the router's to that of the data",
            expected="false: no recipe has a loss that keeps experts equally busy",
            hint="set it to false there; fine-tuning goes without, and router_aux_loss_coef then changes nothing",
        )
    stacks = [name for name, each in model.named_parameters() if each.ndim > 2]
    if in_4_bits and stacks:
        raise ModelError(
            path,
            got=f"{type(model).__name__} holds matrices in stacks (of {stacks[0]}), which would stay in 32 bits",
            expected="linear layers, all that is held in 4 bits",
            hint="leave --model.quantization out",
        )
