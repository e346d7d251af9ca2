"""A run on two ranks that goes on from a checkpoint of its second epoch is the unbroken run, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.subsystem.ranks import PLACES, check_resumes_exactly, planned
from training.config import LoraConfig
from training.errors import CheckpointError
from training.recipes import train

LORA = LoraConfig(rank=2, dropout=0.25)
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"backend": "ddp"},
    "ddp, lora, saved beside the steps": {"backend": "ddp", "lora": LORA, "asynchronous": True},
    "ddp, moments in 8 bits": {"backend": "ddp", "optimizer": "adamw_8bit"},
    "ddp, muon": {"backend": "ddp", "optimizer": "muon"},
    "fsdp, saved beside the steps": {"backend": "fsdp", "asynchronous": True},
    "fsdp, weights kept gathered, validated before each save": {
        "backend": "fsdp",
        "keep_gathered": True,
        "validation_steps_between": 4,
    },
    "fsdp, lora": {"backend": "fsdp", "lora": LORA},
    "fsdp, offload, lora": {"backend": "fsdp", "offload": True, "lora": LORA},
    "fsdp, offload, four ranks in shards of two": {
        "backend": "fsdp",
        "num_ranks": 4,
        "shard_ranks": 2,
        "offload": True,
    },
    "fsdp, lora, four ranks in shards of two": {"backend": "fsdp", "num_ranks": 4, "shard_ranks": 2, "lora": LORA},
    "fsdp, bf16, recomputed, noise": {
        "backend": "fsdp",
        "precision": "bf16",
        "activation_checkpointing": True,
        "neftune_alpha": 5.0,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_gone_on_in_the_second_epoch_is_the_same_run_bit_for_bit(tmp_path: Path, kind: str) -> None:
    check_resumes_exactly(tmp_path, **KINDS[kind])


@pytest.mark.parametrize("place", ["fsdp x2", "zero 3 x2"])
def test_noise_reaches_the_embeddings_of_ranks(tmp_path: Path, place: str) -> None:
    """The kinds with noise, here and under ZeRO, would be resumed as exactly if there were none."""
    losses = {}
    for alpha in (None, 5.0):
        out = str(tmp_path / f"noise {alpha}")
        losses[alpha] = train(planned(tmp_path, num_steps=1, neftune_alpha=alpha, out=out, **PLACES[place])).loss_first
    assert losses[5.0] != losses[None]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_ranks": 1}, "plan.num_ranks"),
        ({"backend": "ddp"}, "plan.backend"),
        ({"backend": "single", "num_ranks": 1}, "plan.backend"),
    ],
    ids=["fewer ranks", "another backend", "one process"],
)
def test_a_checkpoint_of_another_world_is_refused_by_name(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    made = planned(tmp_path, backend="fsdp", num_steps=1)
    train(made)
    with pytest.raises(CheckpointError, match=rf"step-00000001 \({named}\): ") as refused:
        train(replace(made, **changed))
    hint = "hint: give the setting its old value back, or go on to rounding with --elastic true"
    assert str(refused.value).endswith(hint)
