"""Attention by kernels of accelerators, on a CPU: what they are told is real, and what they compute is written out.

Flex has that in torch, as the mathematics that its kernel is compiled from; of flash's it is here, from its contract.
What is proven is that a model hands them each document by itself and trains by what comes back; how they are compiled
for a card, and that they keep their contract there, is not.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention
from transformers import PreTrainedModel, modeling_flash_attention_utils
from transformers.integrations import flex_attention as flex_integration

from tests.subsystem.processes import forked, records_of
from tests.subsystem.ranks import planned
from tests.support.examples import random_examples
from tests.support.tolerances import RANKS_BF16_RELATIVE, RANKS_FP32_RELATIVE
from training.data.batch import microbatch
from training.errors import ModelError
from training.metrics.records import StepRecord
from training.models.forward import logits
from training.models.load import Attention, check_documents_stay_apart, load_model
from training.models.tiny import Architecture, save_tiny
from training.recipes import train

KERNELS: tuple[Attention, ...] = ("flex", "flash")


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """What the function of that name in the package flash_attn promises, for all that training asks of it.

    Args:
        q: [tokens, heads, size], in bf16 or fp16.
        k: [tokens, groups, size].
        v: as k.
        cu_seqlens_q: int32, where sequences begin, and the number of tokens at the end.
        cu_seqlens_k: the same of keys.
        max_seqlen_q: of the longest sequence.
        max_seqlen_k: the same of keys.
        dropout_p: of scores.
        softmax_scale: of scores; one over the root of size without it.
        causal: each token sees itself and those before it in its sequence.
        window_size: tokens to the left and right that it sees; -1 for all.
    """
    assert {q.dtype, k.dtype, v.dtype} <= {torch.bfloat16, torch.float16}
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (dropout_p, causal, window_size) == (0.0, True, (-1, -1))
    ends = cu_seqlens_q.tolist()
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    assert ends == cu_seqlens_k.tolist()
    assert ends[0] == 0
    assert ends[-1] == len(q) == len(k) == len(v)
    assert max_seqlen_q == max_seqlen_k == max(lengths)
    outputs = [
        nn.functional.scaled_dot_product_attention(
            *(each[None].transpose(1, 2) for each in pieces), is_causal=True, scale=softmax_scale, enable_gqa=True
        )
        for pieces in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    ]
    return torch.cat([each.transpose(1, 2)[0] for each in outputs])


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, **others: Any) -> Tensor:
    """The same for a batch of one sequence, which a pack of one document is: [1, tokens, heads, size]."""
    ends = torch.tensor([0, q.shape[1]], dtype=torch.int32)
    return flash_attn_varlen_func(q[0], k[0], v[0], ends, ends, q.shape[1], q.shape[1], causal=causal, **others)[None]


@pytest.fixture(autouse=True)
def kernels_written_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has both kernels run where there is no card, through the same doors as on one."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)
    install_flash(monkeypatch, flash_attn_varlen_func)
    # What transformers has compiled runs as it is written.
    with torch.compiler.set_stance("force_eager"):
        yield


def install_flash(monkeypatch: pytest.MonkeyPatch, varlen: Any) -> None:
    """Lets transformers find a function for packs where it looks for those of the package."""
    utils: Any = modeling_flash_attention_utils
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    monkeypatch.setattr(
        utils, "_lazy_imports", lambda *_, **__: (flash_attn_func, varlen, None, utils._pad_input, utils._unpad_input)
    )
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)


def arithmetic(kernel: Attention) -> torch.autocast:
    """That in which the kernel computes: bf16 is all that flash has."""
    return torch.autocast("cpu", torch.bfloat16, enabled=kernel == "flash")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_model_computes_with_it_what_it_does_with_ours(
    tmp_path: Path, kernel: Attention, architecture: Architecture
) -> None:
    save_tiny(tmp_path, architecture)
    batch = microbatch(random_examples([20, 12, 2, 7]))
    seen = []
    for attention in ("documents", kernel):
        model = load_model(str(tmp_path), attention=attention).model
        with arithmetic(kernel):
            logits_TV = logits(model, batch).float()
        logits_TV.square().sum().backward()
        seen.append((logits_TV, {name: each.grad for name, each in model.named_parameters()}))
    (expected_TV, expected), (got_TV, got) = seen
    relative = RANKS_BF16_RELATIVE if kernel == "flash" else RANKS_FP32_RELATIVE
    assert (got_TV - expected_TV).norm() < relative * expected_TV.norm()
    for name, gradient in expected.items():
        assert gradient is not None
        assert (got[name] - gradient).norm() < 5 * relative * gradient.norm(), name


def trained(directory: Path, name: str, **changed: Any) -> list[StepRecord]:
    """Three steps; the plan is made for a CPU, and which attention it is set afterwards."""
    alone = {"backend": "single", "num_ranks": 1, "validation_fraction": 0.0, "validation_steps_between": None}
    made = planned(directory, out=str(directory / name), num_steps=3, **alone, **changed)
    assert forked(train, made) == 0
    return [each for each in records_of(Path(made.out)) if isinstance(each, StepRecord)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_run_with_it_is_the_run_with_ours(tmp_path: Path, kernel: Attention) -> None:
    precision = "bf16" if kernel == "flash" else "fp32"
    ours = trained(tmp_path, "ours", precision=precision)
    theirs = trained(tmp_path, "theirs", precision=precision, attention=kernel)
    assert len(ours) == len(theirs) == 3
    relative = RANKS_BF16_RELATIVE if kernel == "flash" else RANKS_FP32_RELATIVE
    for one, other in zip(theirs, ours, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=relative)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=relative)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_that_sees_a_pack_as_one_document_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Attention
) -> None:
    def one_document(q: Tensor, k: Tensor, v: Tensor, **others: Any) -> Tensor:
        whole = torch.tensor([0, len(q)], dtype=torch.int32)
        lengths = {"max_seqlen_q": len(q), "max_seqlen_k": len(q)}
        return flash_attn_varlen_func(q, k, v, **others | {"cu_seqlens_q": whole, "cu_seqlens_k": whole} | lengths)

    def without_mask(self: object) -> Any:
        return lambda *given, block_mask, **others: flex_attention.flex_attention(*given, **others)

    save_tiny(tmp_path)
    model = load_model(str(tmp_path), attention=kernel).model
    with arithmetic(kernel):
        check_documents_stay_apart(model, "it")
        install_flash(monkeypatch, one_document)
        monkeypatch.setattr(flex_integration.WrappedFlexAttention, "__call__", without_mask)
        with pytest.raises(ModelError, match=r"it: LlamaForCausalLM lets a packed document see the one before it"):
            check_documents_stay_apart(model, "it")
