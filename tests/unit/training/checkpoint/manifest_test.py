"""A checkpoint is believed whole or not at all, and its absence is noticed."""

import json
from pathlib import Path

import pytest

from training.checkpoint.manifest import (
    MANIFEST,
    POINTER,
    committed,
    entry_of,
    manifest_text,
    name_of,
    newest,
    verified,
)
from training.errors import CheckpointCorrupt, CheckpointMissing

FILES = {"state.json": b'{"a": 1}', "parameters.safetensors": bytes(range(200))}


def write(checkpoints: Path, step: int) -> Path:
    """A committed checkpoint, written plainly."""
    path = checkpoints / name_of(step)
    path.mkdir(parents=True)
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    (path / MANIFEST).write_text(manifest_text(step, {name: entry_of(path / name) for name in FILES}))
    (checkpoints / POINTER).write_text(path.name + "\n")
    return path


def test_whole_checkpoint_is_verified(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    assert verified(path) == {name: path / name for name in FILES}


def test_entry_is_size_and_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    entry = entry_of(tmp_path / "abc")
    assert entry.bytes == 3
    assert entry.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_flipping_a_bit_of_any_byte_of_any_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 10) / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        if name == MANIFEST and _same_json(whole, bytes(damaged)):
            continue
        with pytest.raises(CheckpointCorrupt, match=f"{name_of(10)}/{name}: "):
            verified(path.parent)


def _same_json(one: bytes, other: bytes) -> bool:
    """Some flips turn a space into another blank: the text differs, its meaning does not."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_truncating_any_file_anywhere_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 10) / name
    whole = path.read_bytes()
    for length in range(len(whole) - (name == MANIFEST)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointCorrupt, match=f"{name_of(10)}/{name}: "):
            verified(path.parent)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_absent_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 10) / name
    path.unlink()
    with pytest.raises(CheckpointCorrupt, match=f"{name}: the file is not there; expected"):
        verified(path.parent)


def test_manifest_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    path.rename(tmp_path / name_of(20))
    with pytest.raises(
        CheckpointCorrupt, match="its content does not match its own hash; expected the manifest of step"
    ):
        verified(tmp_path / name_of(20))


def test_messages_show_the_way_back(tmp_path: Path) -> None:
    write(tmp_path, 10)
    path = write(tmp_path, 20)
    (path / "state.json").write_bytes(b"short")
    with pytest.raises(CheckpointCorrupt) as damaged:
        verified(path)
    assert str(damaged.value) == (
        f"{path}/state.json: 5 bytes; expected 8 bytes. hint: restore the file from a copy, or remove {path} and "
        f"{tmp_path}/latest to go on from step-00000010"
    )
    (path / "state.json").write_bytes(b'{"a": 2}')
    with pytest.raises(CheckpointCorrupt, match=r"its content has another SHA-256; expected [0-9a-f]{16}…\."):
        verified(path)


def test_newest_is_the_last_committed_one_and_leftovers_are_not(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    assert newest(tmp_path) is None
    for step in (5, 100_000_000, 20):
        write(tmp_path, step)
    (tmp_path / ".unfinished-step-00000030").mkdir()
    (tmp_path / ".trash-step-00000040").mkdir()
    (tmp_path / "step-00000050").write_text("a file")
    (tmp_path / POINTER).write_text("step-00000020\n")
    assert [path.name for path in committed(tmp_path)] == ["step-00000005", "step-00000020", "step-100000000"]
    assert newest(tmp_path) == tmp_path / "step-100000000", "a commit counts though its pointer was not written"


def test_newest_without_a_pointer_is_the_first_ever_committed(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    (tmp_path / POINTER).unlink()
    assert newest(tmp_path) == path


def test_vanished_checkpoint_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 10)
    gone = write(tmp_path, 20)
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointMissing) as missing:
        newest(tmp_path)
    assert str(missing.value) == (
        f"{gone}: the newest checkpoint is not there; expected a directory, since {tmp_path}/latest names it. hint: "
        f"put it back, or remove {tmp_path}/latest to go on from step-00000010"
    )


def test_damaged_pointer_is_refused_at_every_bit_and_length(tmp_path: Path) -> None:
    write(tmp_path, 10)
    pointer = tmp_path / POINTER
    whole = pointer.read_bytes()
    damaged = [whole[:length] for length in range(len(whole) - 1)]
    for position in range(len(whole) - 1):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            damaged.append(bytes(flipped))
    for content in damaged:
        pointer.write_bytes(content)
        with pytest.raises((CheckpointCorrupt, CheckpointMissing), match="latest"):
            newest(tmp_path)
    pointer.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointCorrupt, match=f"remove {pointer} to go on from step-00000010"):
        newest(tmp_path)
