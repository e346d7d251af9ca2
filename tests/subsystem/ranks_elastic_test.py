"""A run goes on from the checkpoint of another backend, stage or number of ranks: to rounding, in no more memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.subsystem.processes import records_of
from tests.subsystem.ranks import PLACES, planned
from tests.support.tolerances import RANKS_COARSE_OPTIMIZER_RELATIVE, RANKS_FP32_RELATIVE
from training import run
from training.checkpoint.resume import load
from training.checkpoint.state import restore
from training.config import LoraConfig
from training.errors import CheckpointError
from training.metrics.records import Record, StepRecord
from training.models.tiny import tiny_model, tiny_tokenizer
from training.recipes import train
from training.step import train_step

LORA = LoraConfig(rank=2)
PAIRS: list[tuple[str, str, LoraConfig | None]] = [
    ("one process", "fsdp x3, offload", None),
    ("ddp x2", "fsdp x2", None),
    ("fsdp x2", "one process", None),
    ("fsdp x2", "fsdp x3, offload", None),
    ("fsdp x3, offload", "fsdp x2", None),
    ("fsdp x3, offload", "ddp x2", LORA),
    ("one process", "zero 3 x3", None),
    ("zero 3 x3", "zero 1 x2", None),
    ("zero 1 x2", "zero 3 x2", None),
    ("zero 2 x2", "fsdp x2", None),
    ("zero 2 x2", "one process", LORA),
    ("fsdp x2", "zero 2 x2", None),
    ("ddp x2", "zero 3 x2", LORA),
    ("zero 3 x2", "one process", None),
    ("fsdp x4, shards of 2", "fsdp x2", None),
    ("fsdp x4", "fsdp x4, shards of 2", LORA),
    ("zero 1 x2", "fsdp x4, shards of 2", None),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[LoraConfig | None], list[Record]]:
    """The records of one process that does all steps."""

    @cache
    def records(lora: LoraConfig | None) -> list[Record]:
        directory = tmp_path_factory.mktemp("unbroken")
        made = planned(directory, epsilon=1e-4, lora=lora, **PLACES["one process"])
        train(made)
        return records_of(Path(made.out))

    return records


@pytest.mark.parametrize(("before", "after", "lora"), PAIRS)
def test_elastic_run_goes_on_at_another_place_to_rounding(
    tmp_path: Path,
    unbroken: Callable[[LoraConfig | None], list[Record]],
    before: str,
    after: str,
    lora: LoraConfig | None,
) -> None:
    made = planned(tmp_path, elastic=True, epsilon=1e-4, lora=lora)
    train(replace(made, **PLACES[before], steps_this_session_max=4))
    train(replace(made, **PLACES[after]))
    for one, other in zip(unbroken(lora), records_of(Path(made.out)), strict=True):
        assert type(one) is type(other)
        assert other.step == one.step
        assert other.loss == pytest.approx(one.loss, rel=RANKS_FP32_RELATIVE)
        if isinstance(one, StepRecord) and isinstance(other, StepRecord):
            # A moment that was lost, or put beside another weight, would show here.
            assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=RANKS_FP32_RELATIVE)


def test_elastic_run_takes_moments_in_8_bits_along(tmp_path: Path) -> None:
    """They bring tables along whose shapes are not their weights'."""
    made = planned(tmp_path, elastic=True, optimizer="adamw_8bit", fused=False)
    train(replace(made, **PLACES["ddp x2"], out=str(tmp_path / "unbroken")))
    train(replace(made, **PLACES["ddp x2"], steps_this_session_max=4))
    train(replace(made, **PLACES["one process"]))
    for one, other in zip(records_of(tmp_path / "unbroken"), records_of(Path(made.out)), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=RANKS_COARSE_OPTIMIZER_RELATIVE)


def test_elastic_run_at_the_same_place_is_exact(tmp_path: Path) -> None:
    made = planned(tmp_path, elastic=True, lora=LoraConfig(rank=2, dropout=0.25), **PLACES["fsdp x2"])
    train(replace(made, out=str(tmp_path / "whole")))
    train(replace(made, steps_this_session_max=4))
    train(made)
    assert records_of(tmp_path / "whole") == records_of(Path(made.out))


def test_elastic_run_still_refuses_what_is_no_matter_of_place(tmp_path: Path) -> None:
    made = planned(tmp_path, elastic=True, num_steps=1, **PLACES["fsdp x2"])
    train(made)
    with pytest.raises(CheckpointError, match=r"\(plan.seed\): 1 now, 0 when it was saved"):
        train(replace(made, seed=1, **PLACES["ddp x2"]))


BYTES_WORTH_COUNTING = 1024


def plain_tensors(tree: Any) -> list[Tensor]:
    """Those with a memory of their own."""
    return [each for each in tree_leaves(tree) if type(each) in (Tensor, nn.Parameter)]


def is_mapped(address: int) -> bool:
    """Whether a file of tensors is seen there, which is no memory: the file is there to be read again."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split(maxsplit=1)[0].split("-") for line in lines if line.endswith(".safetensors")]
    return any(int(first, 16) <= address < int(last, 16) for first, last in ranges)


class Allocated(TorchDispatchMode):
    """While entered, how many bytes of tensors made in it are alive, and the most at once. Mapped files are not."""

    def __init__(self, *, maps: bool) -> None:
        """With `maps` False nothing is mapped in it, and the system, which takes its time, is not asked."""
        super().__init__()
        self.maps = maps
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, DTensor) for each in tree_leaves((args, kwargs))):
            # Then it is asked again, of the part that is here.
            return NotImplemented
        before = {each.untyped_storage().data_ptr() for each in plain_tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.alive = {at: held for at, held in self.alive.items() if not held[0].expired()}
        for each in plain_tensors(result):
            storage = each.untyped_storage()
            if (
                storage.nbytes() >= BYTES_WORTH_COUNTING
                and (at := storage.data_ptr()) not in self.alive.keys() | before
            ):
                self.alive[at] = StorageWeakRef(storage), 0 if self.maps and is_mapped(at) else storage.nbytes()
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self.alive.values()))
        return result


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ddp x2", "ddp x2"),
        ("fsdp x2", "fsdp x2"),
        ("zero 2 x2", "zero 2 x2"),
        ("zero 3 x2", "zero 3 x2"),
        ("one process", "fsdp x3, offload"),
        ("one process", "zero 3 x3"),
    ],
)
def test_loading_takes_no_more_memory_than_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """The model is large enough for activations of a few tokens to be little.

    Nor more than gradients and both moments: DeepSpeed's step has buckets beside which this model would not be seen.
    """
    tiny_model(hidden_size=64, intermediate_size=128, num_hidden_layers=4).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")

    def measured(what: str, does: Callable[..., Any]) -> Callable[..., Any]:
        allocated = Allocated(maps=False) if what == "step" else loading

        def measure(*arguments: Any, **options: Any) -> Any:
            with allocated:
                result = does(*arguments, **options)
            (tmp_path / f"{what} of {torch.distributed.get_rank()}").write_text(str(allocated.peak))
            return result

        return measure

    loading = Allocated(maps=True)
    few: dict[str, Any] = {"elastic": True, "num_steps": 2, "samples_per_step": 2, "tokens_per_rank_max": 64}
    few |= {"tokens_per_sample_max": 64, "on_long_sample": "skip", "validation_fraction": 0.0}
    few |= {"validation_steps_between": None}
    made = planned(tmp_path, **few)
    train(replace(made, **PLACES[before], steps_this_session_max=1))
    for name, does in {"load": load, "restore": restore, "train_step": train_step}.items():
        monkeypatch.setattr(run, name, measured("step" if does is train_step else "loading", does))
    train(replace(made, **PLACES[after]))
    whole = 3 * (tmp_path / "base/model.safetensors").stat().st_size
    for rank in range(PLACES[after]["num_ranks"]):
        peak, allowed = (int((tmp_path / f"{what} of {rank}").read_text()) for what in ("loading", "step"))
        assert 0 < peak <= min(allowed, whole)
