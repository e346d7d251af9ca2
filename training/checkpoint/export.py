"""Writes a trained model as a Hugging Face directory, and says so only after loading it again.

    model     all weights, config, tokenizer and chat template; in several files, with an index, if they are large
    adapter   the LoRA matrices alone, with the name of the base model; of a model with a value head, this too
    merged    the base model with the adapter added in, laid out like `model`

The directory gets its name by one rename after the check, so a directory that is there is one that was verified. The
check is what a user will do with it: transformers loads it from disk, runs it on a few tokens, and the logits must be
those of the model in memory. Equal weights would be the weaker claim: a wrong config computes other logits from them.

Weights of 4 bits are computed with in fp32 here. An adapter is checked on its base model in 4 bits, where it was
trained. Merged is the base in which each 4-bit weight is the number that it stood for, with the adapter added in.

Both run the same attention, so the logits of `model` and `adapter` must agree bit for bit. Merging adds in another
order than running the adapter beside its layer does, so there they agree to rounding, and the bound is stated below.
"""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.checkpoint.manifest import TRASH, UNFINISHED
from training.errors import ExportError
from training.models.attention import DocumentStarts
from training.models.forward import value_head
from training.models.inner import inner
from training.models.load import IMPLEMENTATIONS, leave_as_stored
from training.models.lora import load_adapter, merged, save_adapter
from training.models.quantize import computing_in_fp32, is_quantized, nf4
from training.plan import ExportKind

if TYPE_CHECKING:
    from peft import PeftModel

MERGE_TOLERANCE = 1e-3
"""Largest difference of a logit after merging, relative to the largest logit. Rounding in fp32 is far below
it; a forgotten or doubled adapter, or one of another scale, is far above."""

NUM_PROBE_TOKENS = 16

BYTES_PER_FILE_MAX = 5_000_000_000
"""Weights beyond it go to another file, so that a copy which breaks off is not lost as a whole."""


def export(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    kind: ExportKind,
    base_path: str,
    bytes_per_file_max: int = BYTES_PER_FILE_MAX,
) -> Path:
    """Writes and verifies one export, replacing an earlier one; returns the directory.

    Args:
        model: the trained model; with an adapter on it for `adapter` and `merged`. Stays as it is.
        tokenizer: is saved along, with its chat template.
        directory: where the export will be.
        kind: see the module's docstring.
        base_path: where the base model was loaded from, to load the adapter onto it for the check.
        bytes_per_file_max: of weights; a larger one has a file of its own. An adapter is always one file.

    Raises:
        ExportError: it cannot be written or loaded, or computes something else than the model in memory.
    """
    unfinished = directory.with_name(f"{UNFINISHED}{directory.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    was_training = model.training
    model.eval()
    try:
        unfinished.mkdir(parents=True)
        if kind == "adapter":
            save_adapter(cast("PeftModel", model), unfinished)
        else:
            whole = merged(cast("PeftModel", model)) if kind == "merged" else cast(PreTrainedModel, model)
            whole.save_pretrained(unfinished, max_shard_size=bytes_per_file_max)
        tokenizer.save_pretrained(unfinished)
        _verify(model, tokenizer, unfinished, directory, kind=kind, base_path=base_path)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            str(directory),
            got=f"the {kind} cannot be written or read again ({error})",
            expected="a directory with room for it",
            hint="make room and give the same command again: it goes straight from the last checkpoint to the export",
        ) from error
    except ExportError:
        shutil.rmtree(unfinished)
        raise
    finally:
        model.train(was_training)
    trash = directory.with_name(f"{TRASH}{directory.name}")
    shutil.rmtree(trash, ignore_errors=True)
    if directory.exists():
        directory.rename(trash)
    os.sync()
    unfinished.rename(directory)
    shutil.rmtree(trash, ignore_errors=True)
    return directory


def _verify(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    written: Path,
    named: Path,
    *,
    kind: ExportKind,
    base_path: str,
) -> None:
    """Loads what was written as a user would, and compares its logits and its tokenizer; errors call it `named`."""
    source = base_path if kind == "adapter" else written
    base = inner(model)
    trained_with = attention = base.config._attn_implementation
    if attention in IMPLEMENTATIONS.values():
        # Kernels of accelerators, of which not all compute in fp32; an export may be put together on the CPU.
        attention = "sdpa"
    in_4_bits = kind == "adapter" and is_quantized(model)
    says_one_value = value_head(model) is not None
    auto = AutoModelForSequenceClassification if says_one_value else AutoModelForCausalLM
    reloaded: nn.Module = auto.from_pretrained(
        source,
        dtype=torch.float32,
        attn_implementation=attention,
        quantization_config=nf4("fp32") if in_4_bits else None,
        # A language model under the adapter does not say how many values its head is to have.
        **({"num_labels": 1} if says_one_value else {}),
    )
    leave_as_stored(reloaded)
    if kind == "adapter":
        reloaded = load_adapter(cast(PreTrainedModel, reloaded), written)
    device = next(model.parameters()).device
    base.set_attn_implementation(attention)
    with computing_in_fp32(model) if is_quantized(model) else nullcontext():
        expected, got = _probe(model, device), _probe(reloaded.to(device), device)
    base.set_attn_implementation(trained_with)
    difference = ((expected - got).abs().max() / expected.abs().max()).item()
    tolerance = MERGE_TOLERANCE if kind == "merged" else 0.0
    if not difference <= tolerance:
        raise ExportError(
            str(named),
            got=f"the {kind}, loaded again, computes other logits (by {difference:.2g} of the largest)",
            expected=f"those of the trained model, to {tolerance:g}",
            hint="nothing is lost: the checkpoint has the trained weights. Please report this with the model's name",
        )
    again = AutoTokenizer.from_pretrained(written)
    if again.get_vocab() != tokenizer.get_vocab() or again.chat_template != tokenizer.chat_template:
        raise ExportError(
            str(named),
            got="the tokenizer, loaded again, has another vocabulary or chat template",
            expected="those that the model was trained with",
            hint="copy tokenizer.json and chat_template.jinja from the base model. Please report this with its name",
        )


@torch.no_grad()
def _probe(model: nn.Module, device: torch.device) -> Tensor:
    """The model's logits on the first few token ids, which every vocabulary has."""
    was_training = model.training
    model.eval()
    ids_1T = torch.arange(NUM_PROBE_TOKENS, device=device)[None]
    outputs = model(
        input_ids=ids_1T,
        position_ids=ids_1T,
        attention_mask=None,
        use_cache=False,
        document_starts=DocumentStarts([0, NUM_PROBE_TOKENS]),
    )
    model.train(was_training)
    logits: Tensor = outputs.logits
    return logits.float()
