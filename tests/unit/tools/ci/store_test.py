import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tools.ci import smoke_files
from tools.ci import store
from tools.ci.cells import BadFile, parse_verdict
from tools.ci.store import Record, append, default_store, fingerprint, read_store, record_of

LORA = smoke_files.cell("cpu", "fsdp", 2, ("lora",))
HOPPER = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_000_000_000}


def measured(commit: str = "aaaa", cell: dict[str, Any] = LORA, **changes: Any) -> Record:
    verdict = parse_verdict(smoke_files.verdict(cell, **changes), "v")
    return record_of(verdict, commit, "2026-11-25", verdict.problem)


def many(count: int) -> list[Record]:
    return [measured(f"c{at}", seed=at) for at in range(count)]


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.jsonl"
    curve = [{"step": 1, "loss": 2.123456789123, "gradient_norm": None}]
    record = measured(curve=curve, golden=None)
    assert append(path, [record]) == 1
    (found,), problems = read_store(path)
    assert problems == []
    assert found.curve[0].loss == 2.12345679
    assert math.isnan(found.curve[0].gradient_norm)
    assert (found.cell, found.features, found.seconds) == ("cpu/sft_lora_fsdp_x2", ("lora",), pytest.approx(17.0))
    assert (found.commit, found.date, found.proven, found.tolerance) == ("aaaa", "2026-11-25", True, 2e-6)


def test_a_measurement_is_stored_once_whatever_commit_the_cache_answers_at(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert append(path, [measured("aaaa")]) == 1
    assert append(path, [measured("bbbb")]) == 0
    assert append(path, [measured("bbbb", seed=8)]) == 1
    assert [record.commit for record in read_store(path)[0]] == ["aaaa", "bbbb"]


def test_a_failed_run_is_kept_as_failed(tmp_path: Path) -> None:
    append(tmp_path / "h", [measured(status="failed")])
    assert [record.proven for record in read_store(tmp_path / "h")[0]] == [False]


def test_the_newest_measurements_of_each_cell_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "RECORDS_MAX", 3)
    path = tmp_path / "history.jsonl"
    other = measured("other", smoke_files.cell("cpu", "ddp", 2, ()))
    append(path, [other, *many(5)])
    assert [record.commit for record in read_store(path)[0]] == ["other", "c2", "c3", "c4"]


def test_the_file_stays_below_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    append(path, many(1))
    monkeypatch.setattr(store, "BYTES_MAX", 3 * path.stat().st_size + 30)
    append(path, many(9))
    assert path.stat().st_size <= store.BYTES_MAX
    assert [record.commit for record in read_store(path)[0]] == ["c6", "c7", "c8"]


@pytest.mark.parametrize("line", ["{", "[]", '{"schema":2}', '{"schema":1}', '{"schema":1,"curve":[[1]]}'])
def test_a_bad_line_is_named_and_stops_whoever_would_drop_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    append(path, [measured()])
    path.write_text(f"{path.read_text()}{line}\n")
    before = path.read_text()
    records, problems = read_store(path)
    assert len(records) == 1
    assert [problem.split(": is no record")[0] for problem in problems] == [f"{path}:2"]
    with pytest.raises(BadFile, match=r"history\.jsonl:2: is no record .*\nhint: repair or delete these lines"):
        append(path, [measured(seed=9)])
    assert path.read_text() == before


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    append(path, [measured()])
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        append(path, [measured(seed=9)])
    assert path.read_text() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["history.jsonl", "history.lock"]


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda record: append(path, [record]), many(20))) == 20
    assert len(read_store(path)[0]) == 20


def test_a_fingerprint_is_of_what_times_depend_on() -> None:
    machine = {"machine": "x86_64", "processor": "Example(R) CPU 9000 @ 2.1GHz", "cores": 2, "kernel": "6.1"}
    name = fingerprint(machine)
    assert name.startswith("2x-example-cpu-9000-2-1ghz-")
    assert fingerprint({**machine, "kernel": "6.2", "driver": "1", "memory_bytes": 1}) == name
    assert fingerprint({**machine, "cores": 4}) != name
    assert fingerprint({**machine, "accelerators": [HOPPER] * 4}).startswith("4x-nvidia-h100-80gb-hbm3-")
    assert fingerprint({}).startswith("1x-machine-")


def test_the_store_is_beside_what_bazelw_keeps() -> None:
    assert default_store({"HOME": "/h"}) == Path("/h/.cache/plumbline/history.jsonl")
    assert default_store({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/x/plumbline/history.jsonl")
    assert default_store({"HOME": "/h", "PLUMBLINE_CACHE": "/p"}) == Path("/p/history.jsonl")


def test_a_line_is_compact_json(tmp_path: Path) -> None:
    append(tmp_path / "h", [measured()])
    (line,) = (tmp_path / "h").read_text().splitlines()
    assert len(line) < 1500
    assert json.loads(line)["phases"][0] == ["set up", 6.1, 120_344]


def test_bytes_are_kept_and_a_line_from_before_they_were_is_still_read(tmp_path: Path) -> None:
    append(tmp_path / "h", [measured()])
    assert read_store(tmp_path / "h")[0][0].bytes_written == 120_344 + 2_211 + 1_204_224 + 4_110 + 602_112
    old = json.loads((tmp_path / "h").read_text())
    old["phases"] = [[name, seconds] for name, seconds, _ in old["phases"]]
    (tmp_path / "h").write_text(json.dumps(old) + "\n")
    ((record,), problems) = read_store(tmp_path / "h")
    assert (problems, record.bytes_written, record.seconds) == ([], None, pytest.approx(17.0))
