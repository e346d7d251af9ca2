"""A model's layers as compiled code (torch.compile): fewer passes over memory, the same formulas, other last digits.

Each layer is compiled by itself and in its place, so that weights keep their names, a backend that gathers a layer at a
time still does, and a model of many layers takes no longer to compile than one of few: alike layers share their code.

Attention per document stays what it is, a call in the middle of a layer. It cuts a pack at places that are other places
in the next pack, and compiled code would be compiled anew for each.

torch's compiler takes seconds to import, and is imported where it is needed.
"""

from types import MethodType

from torch import nn
from transformers import AttentionInterface

from training.errors import ModelError
from training.models.attention import DOCUMENTS, documents_attention


def compile_layers(model: nn.Module, where: str) -> None:
    """Has the model's layers run as compiled code, from their next call on.

    Args:
        model: a causal language model with attention per document, however wrapped.
        where: names it in errors.

    Raises:
        ModelError: the model does not say what its layers are.
    """
    import torch._dynamo.config
    import torch._inductor.config
    import torch.fx.experimental._config

    layers = _layers(model)
    if not layers:
        raise ModelError(
            where,
            got=f"{type(model).__name__}, which does not say what its layers are",
            expected="an architecture with _no_split_modules, as transformers' own have",
            hint="leave --model.compile out",
        )
    # Workers of its own would outlive a rank that is killed, and one layer has too little for them to do.
    torch._inductor.config.compile_threads = 1
    # Otherwise dropout draws from generators of the compiler's, and other places than without it.
    torch._inductor.config.fallback_random = True
    # Otherwise a pack as long as a layer is wide is taken for one that always is.
    torch.fx.experimental._config.use_duck_shape = False
    # Otherwise attention cuts its module and the layer around it, into four pieces to compile instead of two.
    torch._dynamo.config.nested_graph_breaks = True
    # Otherwise a layer that is compiled anew again and again is silently no longer compiled.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    AttentionInterface.register(DOCUMENTS, torch.compiler.disable(documents_attention))  # type: ignore[no-untyped-call]  # torch gives it no types
    for layer, kind in layers:
        # Of the class that transformers wrote: one that a backend has put in front of it is wrapped twice. And inside
        # the hooks by which a backend gathers weights, which are its own affair.
        vars(layer)["forward"] = torch.compile(MethodType(kind.forward, layer), dynamic=True)


def uncompile_layers(model: nn.Module) -> None:
    """Has the layers run as they are written again."""
    for layer, _ in _layers(model):
        vars(layer).pop("forward", None)


def _layers(model: nn.Module) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Each layer and its class of transformers."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [(each, kind) for each in model.modules() for kind in type(each).__mro__ if kind.__name__ in names]
