"""Loads what a run exported as its user will, and the trained weights from the last checkpoint, and compares logits.

Of a reward model it is one value, that of the whole text.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.smoke.matrix import Recipe
from training.checkpoint.resume import load
from training.config import LoraConfig
from training.models.critic import add_critic
from training.models.load import leave_as_stored
from training.models.lora import add_adapter
from training.models.quantize import nf4

IDS = range(7, 39)
"""Token ids of the text that both are asked about."""


def reload(where: Path, file: Path, row: Recipe) -> None:
    """Writes, for each export of a finished run, how far its logits are from those of the trained weights.

    To be called in a process of its own, which has nothing of the run but its files.

    Args:
        where: the directory that the run was started in.
        file: gets {"num_weights": …, "exports": {kind: {"difference": …, "moved": …}}}, both relative to the largest
            logit; `moved` is the distance from the base model.
        row: which heads the model has.
    """
    torch.set_num_threads(1)
    run = json.loads((where / "out/run.json").read_text())
    summary = json.loads((where / "out/summary.json").read_text())
    checkpoint = where / "out/checkpoints" / (where / "out/checkpoints/latest").read_text().strip()
    base = partial(_base, where, run["plan"], row)
    before = _logits(base())
    trained, num_weights = _trained(base(), checkpoint, run["plan"], row)
    exports = {}
    for kind, directory in summary["exports"].items():
        logits = _logits(_exported(base, kind, where / directory, row))
        exports[kind] = {"difference": _distance(logits, trained), "moved": _distance(logits, before)}
    file.write_text(json.dumps({"num_weights": num_weights, "exports": exports}) + "\n", encoding="utf-8")


def _base(where: Path, plan: Mapping[str, Any], row: Recipe) -> Any:
    """The base model, in 4 bits if it was trained so; of a reward model, with a head that says 0."""
    quantization = nf4("fp32") if plan["quantization"] == "nf4" else None
    if not row.has_value_head:
        model = AutoModelForCausalLM.from_pretrained(where / "base", quantization_config=quantization)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            where / "base", quantization_config=quantization, num_labels=1
        )
        torch.nn.init.zeros_(model.score.weight)
    leave_as_stored(model)
    return model


def _trained(model: Any, checkpoint: Path, plan: Mapping[str, Any], row: Recipe) -> tuple[Tensor, int]:
    """The logits of the weights in a checkpoint, and how many are trained."""
    lora = plan["lora"]
    if lora is not None:
        model = add_adapter(model, LoraConfig(**{**lora, "target_modules": tuple(lora["target_modules"])}))
    if row.has_critic:
        add_critic(model)
    saved = load(checkpoint, elastic=True).tensors["parameters"]
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    unknown, absent = saved.keys() - model.state_dict().keys(), trained.keys() - saved.keys()
    if unknown or absent:
        raise ValueError(f"{checkpoint}: unknown {sorted(unknown)}, absent {sorted(absent)}")
    model.load_state_dict(saved, strict=False)
    return _logits(model), sum(each.numel() for each in trained.values())


def _exported(base: Callable[[], Any], kind: str, directory: Path, row: Recipe) -> Any:
    if kind != "adapter":
        auto = AutoModelForSequenceClassification if row.has_value_head else AutoModelForCausalLM
        return auto.from_pretrained(directory)
    from peft import PeftModel

    return PeftModel.from_pretrained(base(), str(directory))


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """As a user asks for them: transformers' own attention, no positions."""
    logits: Tensor = model.eval()(input_ids=torch.tensor([IDS])).logits
    return logits


def _distance(one: Tensor, other: Tensor) -> float:
    """Between two sets of logits, relative to the largest of both."""
    return ((one - other).abs().max() / torch.maximum(one.abs().max(), other.abs().max())).item()
