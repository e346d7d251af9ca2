"""Lines survive exactly, each step stands once, and a cut-off line is no record."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from training.metrics.records import SCHEMA, Records, StepRecord, ValidationRecord, read_records

STEP = StepRecord(1, 0, 2.5, 0.75, 2e-5, 4, 100, 40, 2, 0.5, {"accuracy": 0.25})


def written(path: Path, steps: range) -> None:
    with Records(path, resumed_step=steps.start - 1) as records:
        for step in steps:
            records.write(replace(STEP, step=step))


def steps_in(path: Path) -> list[int]:
    return [record.step for record in read_records(path)]


def test_records_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    awkward = replace(STEP, loss=0.1 + 0.2, gradient_norm=1e-320, learning_rate=1 / 3)
    validation = ValidationRecord(1, 2.0 / 3, 40, 0.1)
    with Records(path, resumed_step=0) as records:
        records.write(awkward)
        records.write(validation)
        records.sync()
    assert list(read_records(path)) == [awkward, validation]


def test_line_is_plain_json_with_schema_and_kind(tmp_path: Path) -> None:
    written(tmp_path / "metrics.jsonl", range(1, 2))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["schema"], line["kind"], line["step"], line["loss"]) == (SCHEMA, "step", 1, 2.5)


def test_line_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    with Records(tmp_path / "metrics.jsonl", resumed_step=0) as records:
        records.write(STEP)
        assert steps_in(tmp_path / "metrics.jsonl") == [1]


def test_going_on_drops_the_lines_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, range(1, 8))
    written(path, range(5, 7))
    assert steps_in(path) == [1, 2, 3, 4, 5, 6]


def test_starting_anew_drops_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, range(1, 8))
    written(path, range(1, 3))
    assert steps_in(path) == [1, 2]


def test_cut_off_last_line_is_dropped_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, range(1, 3))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        assert steps_in(path) == [1], length
        written(path, range(2, 4))
        assert steps_in(path) == [1, 2, 3], length


def test_nan_is_not_written_as_broken_json(tmp_path: Path) -> None:
    with Records(tmp_path / "metrics.jsonl", resumed_step=0) as records, pytest.raises(ValueError, match="JSON"):
        records.write(replace(STEP, loss=float("nan")))


def test_speed_counts_all_tokens() -> None:
    assert STEP.tokens_per_second == 200
    assert replace(STEP, seconds=0.0).tokens_per_second == 0
