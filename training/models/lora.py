"""Low-rank adapters (arXiv 2106.09685) through peft: W + (alpha / rank) · B A with W frozen.

peft takes seconds to import, so it is imported in the functions that need it; runs without adapters never pay.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import LoraConfig
from training.errors import ModelError
from training.models.forward import value_head
from training.models.quantize import dequantized, is_quantized

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"


def add_adapter(model: "PreTrainedModel", config: LoraConfig) -> "PeftModel":
    """The model with a fresh adapter, everything else frozen. It starts as the identity: B is zero.

    A head of one value learns, too, as a copy that peft saves with the adapter: it is what a reward model says, and
    mostly new. Draws A from torch's global generator, so seed that first. The given model is changed in place.

    Args:
        model: any causal language model, or one with a head of one value.
        config: rank, scale, variant, dropout and target layers; `all-linear` is every linear layer but the head.

    Raises:
        ModelError: a target layer is not in the model.
    """
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
    adapted = peft.get_peft_model(model, adapter)
    assert isinstance(adapted, peft.PeftModel)
    return adapted


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
    import peft

    try:
        return peft.PeftModel.from_pretrained(base, str(directory))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        cause = str(error).strip().splitlines()[0]
        raise ModelError(
            str(directory),
            got=f"the adapter cannot be loaded ({cause})",
            expected="adapter_config.json and adapter_model.safetensors made for this base model",
            hint="check the directory, and that the base model is the one it was trained on",
        ) from error
