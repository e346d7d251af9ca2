"""Frozen weights in 4 bits under an adapter (QLoRA, arXiv 2305.14314), through bitsandbytes.

Each linear layer but the head keeps its weight as NF4: 64 weights share a scale, each is the nearest of 16 values, and
the scales themselves are kept in 8 bits. A weight is turned back into numbers whenever its layer runs; gradients pass
through it to the adapters, and it never changes.

bitsandbytes takes seconds to import, and transformers imports it where it is needed; here it is imported in functions.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, cast
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor, nn
from torch._C import DispatchKeySet
from torch.library import Library, get_kernel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from training.config import Precision
from training.imports import import_lean
from training.models.forward import value_head

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


COMPUTE_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def nf4(precision: Precision) -> BitsAndBytesConfig:
    """How `from_pretrained` quantizes a model: NF4, with scales that are quantized too."""
    _take_scales_by_block()
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # it declares no types
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE_DTYPE[precision],
    )


@cache
def _take_scales_by_block() -> Library:
    """Has CPUs turn 4-bit weights back to numbers in rows that are whole blocks; what registers that must be kept.

    Blocks of 64 weights are counted through the whole weight, whatever the length of its rows. The kernel that
    bitsandbytes has for CPUs with AVX-512 (0.50) counts them in each row anew: with rows of 32, as in a tiny model,
    most weights get another block's scale, and nobody is told. With rows of the block's length it does right.
    """
    import_lean("bitsandbytes")  # It registers the kernel.

    name = "bitsandbytes::dequantize_4bit"
    kernel = get_kernel(name, "CPU")

    def dequantize(
        keys: DispatchKeySet,
        packed: Tensor,
        scales: Tensor,
        block: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        num = prod(shape)
        rows = shape if shape[-1] % block == 0 else (num // block, block) if num % block == 0 else (1, num)
        values: Tensor = kernel.call_boxed(keys, packed, scales, block, quant_type, rows, dtype)
        return values.reshape(list(shape))

    library = Library("bitsandbytes", "IMPL")  # type: ignore[no-untyped-call]  # the same
    with catch_warnings():
        filterwarnings("ignore", "Warning only once for all operators", UserWarning)  # That a kernel is replaced.
        library.impl(  # type: ignore[no-untyped-call]  # it declares no types
            "dequantize_4bit", dequantize, "CPU", with_keyset=True, allow_override=True
        )
    return library


def is_quantized(model: nn.Module) -> bool:
    """True if layers of the model hold 4-bit weights."""
    return getattr(model, "is_loaded_in_4bit", False) is True


@contextmanager
def computing_in_fp32(model: nn.Module) -> Iterator[None]:
    """4-bit weights are turned back to float32 while it is entered, so that what is left of rounding is small."""
    layers = [layer for _, layer in _layers(model)]
    before = [layer.compute_dtype for layer in layers]
    try:
        for layer in layers:
            layer.compute_dtype = torch.float32
        yield
    finally:
        for layer, dtype in zip(layers, before, strict=True):
            layer.compute_dtype = dtype


@torch.no_grad()
def dequantized(model: "PeftModel") -> "PeftModel":
    """A float32 model with the same adapter, each 4-bit weight replaced by the number that it stands for.

    On the CPU, and apart from the given model, which stays as it is.
    """
    import bitsandbytes
    import peft

    base = cast("PreTrainedModel", model.get_base_model())
    config = copy.deepcopy(base.config)
    del config.quantization_config
    generates = value_head(base) is None
    kind = AutoModelForCausalLM if generates else AutoModelForSequenceClassification
    plain = kind.from_config(  # type: ignore[no-untyped-call]  # it declares no types
        config, dtype=torch.float32, attn_implementation=base.config._attn_implementation
    )
    if generates:
        plain.generation_config = copy.deepcopy(base.generation_config)
    twin = peft.get_peft_model(plain, copy.deepcopy(model.peft_config["default"]))
    assert isinstance(twin, peft.PeftModel)
    values: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, layer in _layers(model):
        values[f"{name}.weight"] = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    for name, place in [*twin.named_parameters(), *twin.named_buffers()]:
        place.copy_(values[name])
    return twin


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    import bitsandbytes

    return [(name, each) for name, each in model.named_modules() if isinstance(each, bitsandbytes.nn.Linear4bit)]
