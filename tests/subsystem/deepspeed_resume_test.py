"""A run under ZeRO that goes on from a checkpoint of its second epoch is the unbroken run, bit for bit."""

import itertools
from pathlib import Path

import pytest

from tests.subsystem.ranks import check_resumes_exactly
from training.config import LoraConfig

LORA = LoraConfig(rank=2, dropout=0.25)


@pytest.mark.parametrize(("stage", "offload", "lora"), list(itertools.product((1, 2, 3), (False, True), (None, LORA))))
def test_gone_on_in_the_second_epoch_is_the_same_run_bit_for_bit(
    tmp_path: Path, stage: int, offload: bool, lora: LoraConfig | None
) -> None:
    check_resumes_exactly(
        tmp_path, backend="deepspeed", zero_stage=stage, offload=offload, lora=lora, asynchronous=stage == 2
    )


@pytest.mark.parametrize("stage", [2, 3])
def test_so_it_is_in_bf16_with_activations_recomputed_and_noise(tmp_path: Path, stage: int) -> None:
    check_resumes_exactly(
        tmp_path,
        backend="deepspeed",
        zero_stage=stage,
        precision="bf16",
        activation_checkpointing=True,
        neftune_alpha=5.0,
    )
