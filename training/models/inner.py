"""The model of transformers in an adapter, a replica or whatever else wraps it."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel


def inner(model: nn.Module) -> PreTrainedModel:
    """The first model of transformers among the modules; the given one if there is none, as of a test's own."""
    return cast(PreTrainedModel, next((each for each in model.modules() if isinstance(each, PreTrainedModel)), model))
