"""Low-rank adapters (arXiv 2106.09685) through peft: W + (alpha / rank) · B A with W frozen.

The experts of a mixture are stacks of matrices, and each matrix gets an A and a B of its own. Where transformers keeps
two of them, up and gate, as one twice as high, peft gives it twice the rank and twice alpha: the scale alpha / rank
stays, and that of rsLoRA, alpha / √rank, is √2 times as large there.

peft takes seconds to import, so it is imported in the functions that need it; runs without adapters never pay.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, filterwarnings

from torch import nn

from training.config import LoraConfig
from training.errors import ModelError
from training.imports import import_lean
from training.models.forward import value_head
from training.models.quantize import dequantized, is_quantized

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
BY_NAME = "--lora.target_modules '[q_proj, v_proj]'"


def add_adapter(model: "PreTrainedModel", config: LoraConfig) -> "PeftModel":
    """The model with a fresh adapter, everything else frozen. It starts as the identity: B is zero.

    A head of one value learns, too, as a copy that peft saves with the adapter: it is what a reward model says, and
    mostly new. Draws A from torch's global generator, so seed that first. The given model is changed in place.

    Args:
        model: any causal language model, or one with a head of one value.
        config: rank, scale, variant, dropout and target layers; `all-linear` is every linear layer but the head, and
            the experts and routers of a mixture.

    Raises:
        ModelError: a target layer is not in the model, cannot be adapted in this way, or is left out by all-linear.
    """
    import_lean("peft")
    import peft

    targets = list(config.target_modules)
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    unknown = [target for target in targets if target != ALL_LINEAR and target.rsplit(".", 1)[-1] not in names]
    if unknown or (ALL_LINEAR in targets and len(targets) > 1):
        linear = sorted({name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name.endswith("_proj")})
        raise ModelError(
            "lora.target_modules",
            got=f"'{unknown[0]}', which the model does not have" if unknown else "all-linear beside other names",
            expected=f"{ALL_LINEAR} alone, or names of linear layers such as {', '.join(linear) or 'q_proj'}",
            hint=f"{ALL_LINEAR} takes every linear layer but the head",
        )
    adapter = peft.LoraConfig(
        # By this peft knows a classifier's head: it gets no adapter, and a copy of it is trained and saved.
        task_type="CAUSAL_LM" if value_head(model) is None else "SEQ_CLS",
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=config.dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        use_dora=config.dora,
        use_rslora=config.rank_stabilized,
    )
    every = _matrices(model)
    try:
        with _no_false_alarm():
            adapted = peft.get_peft_model(model, adapter)
    except ValueError as error:
        raise _not_adapted(model, config, error) from error
    assert isinstance(adapted, peft.PeftModel)
    if targets == [ALL_LINEAR] and (left := sorted(every - _adapted(adapted))):
        raise ModelError(
            "lora.target_modules",
            got=f"{ALL_LINEAR}, which leaves {len(left)} weights of {model.config.model_type} as they are, among them "
            f"{left[0]}",
            expected="an architecture of whose experts peft knows where they are",
            hint=f"name the layers that are to learn: {BY_NAME}",
        )
    return adapted


def _matrices(model: nn.Module) -> set[str]:
    """Names of what all-linear promises to adapt: weights of linear layers, and stacks of them, but no head."""
    heads = {model.get_output_embeddings(), value_head(model)}  # type: ignore[operator]  # of transformers, not a tensor
    linear = {
        f"{name}.weight" for name, each in model.named_modules() if isinstance(each, nn.Linear) and each not in heads
    }
    return linear | {name for name, each in model.named_parameters() if each.ndim > 2}


def _adapted(model: "PeftModel") -> set[str]:
    """Names of the base model's weights that have an adapter."""
    from peft.tuners.lora import LoraLayer

    return {
        # A stack beside another one in the same layer has its wrapper inside the other's.
        f"{name.replace('.base_layer', '')}.{getattr(each, 'parameter_name', 'weight')}"
        for name, each in model.get_base_model().named_modules()
        if isinstance(each, LoraLayer)
    }


def _not_adapted(model: "PreTrainedModel", config: LoraConfig, error: ValueError) -> ModelError:
    """For what peft refuses, by a word of its own: some variants on stacks, and what is no linear layer."""
    for name, value in (("dropout", config.dropout), ("dora", config.dora)):
        if value and "ParamWrapper" in str(error):
            return ModelError(
                f"lora.{name}",
                got=f"{str(value).lower()}, for the experts of {model.config.model_type}",
                expected="plain LoRA, all that peft computes for stacks of matrices",
                hint=f"leave it out, or name other layers: {BY_NAME}",
            )
    return ModelError(
        "lora.target_modules",
        got=f"{', '.join(config.target_modules)}, which peft refuses ({' '.join(str(error).split())})",
        expected=f"{ALL_LINEAR}, or names of linear layers",
        hint=f"{ALL_LINEAR} takes every linear layer but the head",
    )


@contextmanager
def _no_false_alarm() -> Iterator[None]:
    """Without peft's warning (0.21) that a doubled rank was ignored. It was not: it looks among modules alone."""
    with catch_warnings():
        filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield


def merged(model: "PeftModel") -> "PreTrainedModel":
    """A copy of the base model with the adapter added into its weights; the given model stays as it is.

    Takes the memory of a second model. Merging in place and subtracting again would not give back the same weights.
    4-bit weights become the numbers that they stand for, since the adapter was trained on those: adding it to the
    weights before quantization, or quantizing the sum again, would be another model.
    """
    copied = dequantized(model) if is_quantized(model) else copy.deepcopy(model)
    base: PreTrainedModel = copied.merge_and_unload(safe_merge=True)
    return base


def save_adapter(model: "PeftModel", directory: str | Path) -> None:
    """Writes the adapter alone, as adapter_model.safetensors and adapter_config.json; a head that learned is in it.

    Embeddings are never saved along: peft would ask the hub whether the vocabulary grew, and here it cannot.
    """
    model.save_pretrained(str(directory), save_embedding_layers=False)


def load_adapter(base: "PreTrainedModel", directory: str | Path) -> "PeftModel":
    """The base model with a saved adapter on it, frozen. The base is changed in place.

    Raises:
        ModelError: the directory holds no adapter, or one of another model.
    """
    import_lean("peft")
    import peft

    try:
        with _no_false_alarm():
            return peft.PeftModel.from_pretrained(base, str(directory))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ModelError(
            str(directory),
            got=f"the adapter cannot be loaded ({cause})",
            expected="adapter_config.json and adapter_model.safetensors made for this base model",
            hint="check the directory, and that the base model is the one it was trained on",
        ) from error
