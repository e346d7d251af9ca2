"""Liger's kernels (arXiv 2410.10989) in place of a model's own norms, rotary positions and gated layers.

The same formulas in Triton, each in one pass over memory, on accelerators alone. Its loss is left out: ours weighs each
token, and `training.models.head` keeps its memory small.

They come from a lock of their own (`training/models/kernels`) to whatever runs on a card. The plan refuses the setting
where the package is absent.
"""

from torch import nn
from transformers import PreTrainedModel

from training.errors import ModelError


def use_liger(model: PreTrainedModel, where: str) -> None:
    """Has the model's layers compute with Liger's kernels, from now on; names of weights stay.

    Liger changes the classes of the architecture, so that models which this process makes later have them too.

    Raises:
        ModelError: Liger has none for the architecture; by itself it would change nothing and say nothing.
    """
    # Brings much of transformers along, which runs without Liger need not wait for.
    from transformers.integrations.liger import apply_liger_kernel

    left_out = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    apply_liger_kernel(model, left_out)  # type: ignore[no-untyped-call]  # it declares no types
    module: nn.Module = model
    if not any(each.forward.__module__.startswith("liger_kernel") for each in module.modules()):
        raise ModelError(
            where,
            got=f"the architecture {model.config.model_type}, for which Liger has no kernels",
            expected="an architecture that the installed liger_kernel knows",
            hint="leave --model.liger out",
        )
