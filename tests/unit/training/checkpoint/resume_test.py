"""Where a run goes on, and what it refuses to go on with."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoint.resume import Saved, check_same, find, load
from training.checkpoint.save import save
from training.checkpoint.state import capture, restore
from training.errors import CheckpointCorrupt, CheckpointError, CheckpointMissing


def write(checkpoints: Path, step: int) -> Path:
    tensors = {"parameters": {"w": torch.arange(4.0)}, "random": {"cpu": torch.get_rng_state()}}
    return save(checkpoints, step, tensors=tensors, state={"identity": {}}, num_kept=2)


def test_load_gives_back_every_tensor_and_the_state(tmp_path: Path) -> None:
    saved = load(write(tmp_path, 10))
    assert saved.step == 10
    assert saved.state == {"identity": {}}
    assert torch.equal(saved.tensors["parameters"]["w"], torch.arange(4.0))
    assert torch.equal(saved.tensors["random"]["cpu"], torch.get_rng_state())


@pytest.mark.parametrize("name", ["parameters.safetensors", "random.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "absent"])
def test_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path, 10) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-20])
    with pytest.raises(CheckpointCorrupt, match=f"step-00000010/{name}: "):
        load(path.parent)


def test_find_follows_the_setting(tmp_path: Path) -> None:
    assert find(tmp_path, "auto") is None
    assert find(tmp_path, "never") is None
    with pytest.raises(CheckpointMissing) as missing:
        find(tmp_path, "must")
    assert str(missing.value) == (
        f"{tmp_path}: no checkpoint; expected one to go on from. hint: check --out, or start from the beginning with "
        "--resume auto"
    )
    path = write(tmp_path, 10)
    assert find(tmp_path, "auto") == path
    assert find(tmp_path, "must") == path
    with pytest.raises(CheckpointError) as refused:
        find(tmp_path, "never")
    assert str(refused.value) == (
        f"{tmp_path}: there are checkpoints up to step-00000010; expected none, with --resume never. hint: choose "
        "another --out, or go on with --resume auto"
    )


def test_same_run_may_go_on_and_another_is_refused_by_the_setting_that_differs() -> None:
    identity = {"plan": {"seed": 1, "betas": [0.9, 0.95], "lora": None}, "data": "abc"}
    saved = Saved(Path("out/checkpoints/step-00000010"), 10, {}, {"identity": identity})
    check_same(saved, identity)
    for changed, name, values in [
        ({"plan": {"seed": 2, "betas": [0.9, 0.95], "lora": None}, "data": "abc"}, "plan.seed", "2 now, 1"),
        ({"plan": {"seed": 1, "betas": [0.9, 0.95], "lora": None}, "data": "abd"}, "data", "abd now, abc"),
        (
            {"plan": {"seed": 1, "betas": [0.9, 0.95], "lora": {"rank": 4}}, "data": "abc"},
            "plan.lora.rank",
            "4 now, None",
        ),
    ]:
        with pytest.raises(CheckpointError) as refused:
            check_same(saved, changed)
        assert str(refused.value) == (
            f"out/checkpoints/step-00000010 ({name}): {values} when it was saved; expected the same run, so that going "
            "on is exact. hint: give the setting its old value back, or start a new run in another --out"
        )


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, so that the system cannot take it back."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_loading_maps_files_and_takes_no_memory_for_a_second_copy(tmp_path: Path) -> None:
    weight = nn.Linear(2048, 2048, bias=False)
    optimizer = torch.optim.AdamW(weight.parameters(), fused=True)
    weight.weight.grad = torch.ones_like(weight.weight)
    optimizer.step()
    num_bytes = weight.weight.nbytes
    tensors = capture(weight, optimizer)
    path = save(tmp_path, 1, tensors=tensors, state={"identity": {}}, num_kept=2)
    del tensors
    optimizer.zero_grad()
    before = anonymous_bytes()
    saved = load(path)
    assert anonymous_bytes() - before < num_bytes / 4, "three times as much is in the files"
    restore(saved.tensors, weight, optimizer)
    del saved
    # The moments of before are gone, those that were loaded are there instead.
    assert anonymous_bytes() - before < num_bytes / 4


UNPICKLED: list[str] = []
"""What has been made from a pickle since the hook below was set; python tells of each."""


def test_no_pickle_is_read(tmp_path: Path) -> None:
    def note(event: str, arguments: object) -> None:
        if event == "pickle.find_class":
            UNPICKLED.append(str(arguments))

    # A hook stays for the life of a process, and does nothing but note.
    sys.addaudithook(note)
    pickle.loads(pickle.dumps(Path("a")))
    assert UNPICKLED, "the hook would have seen one"
    UNPICKLED.clear()
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    path = save(tmp_path, 1, tensors=capture(model, optimizer), state={"identity": {}}, num_kept=2)
    restore(load(path).tensors, model, optimizer)
    assert UNPICKLED == []


def test_flat_parts_of_one_rank_alone_are_joined_to_their_shape(tmp_path: Path) -> None:
    """As ZeRO leaves them on a single rank, where a checkpoint has one file of each kind."""
    plan = {"backend": "deepspeed", "zero_stage": 2, "num_ranks": 1}
    state = {"identity": {"plan": plan, "trained weights": {"w": [2, 3]}}, "replicated": ["buffer"], "num_shards": 1}
    tensors = {
        "parameters": {"w": torch.arange(6.0), "buffer": torch.ones(2)},
        "moments": {"w/exp_avg": torch.arange(6.0), "w/step": torch.tensor(1.0)},
    }
    joined = load(save(tmp_path, 1, tensors=tensors, state=state, num_kept=2), elastic=True).tensors
    assert joined["parameters"]["w"].shape == joined["moments"]["w/exp_avg"].shape == (2, 3)
    assert joined["parameters"]["buffer"].shape == (2,)
    assert joined["moments"]["w/step"].ndim == 0
