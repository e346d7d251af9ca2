"""A summary counts what went in and what was left out, from the records that have each step once."""

import json
from dataclasses import replace
from pathlib import Path

from training.metrics.records import CheckpointRecord, Record, StepRecord, ValidationRecord
from training.metrics.summary import DataSummary, FileSummary, added, summarize

STEP = StepRecord(1, 0, 2.5, 0.75, 2e-5, 4, 1500, 40, 2, 0.5)
FILE = FileSummary(
    path="chat.jsonl",
    num_samples_read=10,
    num_examples=7,
    num_truncated=1,
    samples_skipped={"too long": 2, "unknown role": 1},
    first_skipped="chat.jsonl:3: message 1 has role 'bot'",
    keys_ignored={"id": 10},
)
DATA = DataSummary([FILE], num_training=6, num_validation=1, num_tokens=1234, num_weighted_tokens=345)
RECORDS: list[Record] = [
    ValidationRecord(0, 3.0, 10, 0.1),
    STEP,
    replace(STEP, step=2, loss=1.5),
    ValidationRecord(2, 2.0, 10, 0.1),
    CheckpointRecord(1, 1000, 1.0, 70.0),
    CheckpointRecord(2, 1000, 4.0, 5.0),
]


def test_summary_adds_up_the_records() -> None:
    summary = summarize(RECORDS, DATA, num_steps_planned=2, exports={"model": "out/model"})
    assert (summary.num_steps, summary.num_tokens, summary.seconds) == (2, 3000, 1.0)
    assert (summary.loss_first, summary.loss_last) == (2.5, 1.5)
    assert (summary.validation_loss_first, summary.validation_loss_last) == (3.0, 2.0)
    assert summary.describe() == (
        "data        chat.jsonl: 10 samples read, skipped: 2 too long, 1 unknown role, truncated: 1, 7 examples; first "
        "skipped: chat.jsonl:3: message 1 has role 'bot'; keys nobody reads: id\n"
        "examples    6 to train on (1,234 tokens, 345 of them learned), 1 to validate on\n"
        "steps       2 of 2, 3,000 tokens in 1s (3,000 tokens/s)\n"
        "loss        2.5000 → 1.5000\n"
        "validation  3.0000 → 2.0000\n"
        "checkpoints 2 written in 1m 15s, for which training waited 5s\n"
        "model       out/model"
    )


def test_run_without_steps_or_validation_says_nothing_of_losses() -> None:
    summary = summarize([], DATA, num_steps_planned=2, stopped_by="SIGTERM")
    assert summary.loss_first is None
    assert "loss" not in summary.describe()
    assert "validation  " not in summary.describe()


def test_file_holds_every_count_as_json(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    summarize(RECORDS, DATA, num_steps_planned=2, stopped_by="SIGINT").write(path)
    values = json.loads(path.read_text())
    assert values["stopped_by"] == "SIGINT"
    assert values["data"]["files"][0]["samples_skipped"] == {"too long": 2, "unknown role": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_counts_of_stages_are_added_by_reason() -> None:
    assert added({"b": 1, "a": 2}, {}, {"b": 3}) == {"a": 2, "b": 4}
    assert list(added({"b": 1, "a": 2})) == ["a", "b"]
