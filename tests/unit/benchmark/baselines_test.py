"""The checked-in baselines are whole, and the command that holds results against them says what has changed."""

import json
import statistics
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark import baselines
from tests.benchmark.baselines import BASELINES, FILE, diff, entry, found_in, read, table, write, write_verdict
from tests.benchmark.rule import HIGHER_IS_BETTER, interval
from tools.ci.cells import BadFile, parse_verdict

METRICS = {"exact_match": 0.98, "perplexity": 1.01}


def verdict(cell: str = "sums_full", seed: int = 0, **metrics: float) -> dict[str, Any]:
    """A verdict as a run leaves it, without the run."""
    return {
        "schema": 1,
        "benchmark": cell,
        "cell": {
            "name": f"{cell}_seed_{seed}",
            "recipe": "sft",
            "variant": "cpu",
            "framework": "single",
            "cards": 1,
            "features": [],
        },
        "target": "//tests/benchmark:sums_test",
        "status": "proven",
        "claims": [
            {"name": "learns", "says": "It learns.", "holds": True, "measured": 1.0, "bound": 2.0, "detail": ""}
        ],
        "phases": [{"name": "train", "seconds": 1.0, "seconds_max": 0.0, "bytes_written": 1}],
        "curve": [{"step": 1, "loss": 2.0, "gradient_norm": 1.0}],
        "golden": [],
        "tolerance": 0.0,
        "seed": seed,
        "replay": "./bazelw test //tests/benchmark:sums_test",
        "versions": {"torch": "2"},
        "hardware": {"cpu": "x"},
        "metrics": METRICS | metrics,
        "metrics_before": {},
    }


def seeds(num: int, **metrics: float) -> list[dict[str, Any]]:
    """As many seeds, a little apart."""
    shifted = {name: metrics.get(name, value) for name, value in METRICS.items()}
    return [
        verdict(seed=seed, **{name: value + 0.001 * seed for name, value in shifted.items()}) for seed in range(num)
    ]


def test_what_is_checked_in_follows_from_the_seeds_values() -> None:
    cells = read(BASELINES)
    assert cells
    for cell in cells.values():
        assert len(cell["seeds"]) >= 3
        for name, metric in cell["metrics"].items():
            assert name in HIGHER_IS_BETTER
            assert len(metric["values"]) == len(cell["seeds"])
            assert metric["mean"] == pytest.approx(statistics.fmean(metric["values"]), abs=2e-6)
            assert metric["spread"] == pytest.approx(statistics.stdev(metric["values"]), abs=2e-6)
            assert metric["interval_95"] == pytest.approx(interval(metric["values"]), abs=1e-5)


def test_the_documentation_shows_what_is_checked_in() -> None:
    shown = Path("docs/benchmark.md").read_text(encoding="utf-8")
    assert table(read(BASELINES)) in shown, f"docs/benchmark.md is stale; its table is\n{table(read(BASELINES))}"


def test_verdicts_are_found_in_folders_and_in_the_archives_that_bazel_leaves(tmp_path: Path) -> None:
    write_verdict(verdict(seed=1), tmp_path / "test.outputs")
    archive = tmp_path / "shard_2_of_2" / "test.outputs" / "outputs.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(f"sums_full_seed_0/{FILE}", json.dumps(verdict(seed=0)))
        packed.writestr(f"other_seed_0/{FILE}", json.dumps(verdict("other")))
    found = found_in([tmp_path])
    assert {cell: [each["seed"] for each in verdicts] for cell, verdicts in found.items()} == {
        "other": [0],
        "sums_full": [0, 1],
    }


def test_a_verdict_that_the_reports_reader_would_refuse_is_refused_here(tmp_path: Path) -> None:
    assert parse_verdict(json.dumps(verdict()), "x").seed == 0
    write_verdict(verdict() | {"curve": [{"step": 1}]}, tmp_path)
    with pytest.raises(BadFile, match=r"curve\[0\]: loss is missing"):
        found_in([tmp_path])


def test_the_difference_says_old_new_and_what_the_rule_says(tmp_path: Path) -> None:
    write({"sums_full": entry(seeds(5))}, tmp_path / "baselines.json")
    checked_in = read(tmp_path / "baselines.json")
    assert diff(checked_in, "sums_full", seeds(3)).count("as before") == 2
    worse = diff(checked_in, "sums_full", seeds(3, exact_match=0.5)).splitlines()
    assert worse[0] == "sums_full (seeds 0, 1, 2)"
    assert worse[1].split()[:4] == ["exact_match", "0.9820", "→", "0.5010"]
    assert worse[1].endswith("worse")
    assert worse[2].endswith("as before")
    assert "new" in diff(checked_in, "unheard_of", seeds(3))


def command(monkeypatch: pytest.MonkeyPatch, root: Path, *words: str) -> int:
    """The command as `bazel run` starts it in the repository at `root`."""
    (root / BASELINES).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(root))
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(root))
    monkeypatch.setattr("sys.argv", ["baselines", *words])
    return baselines.main()


def test_the_command_refreshes_only_if_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "bazel-testlogs/tests/benchmark/sums_test/test.outputs"
    assert command(monkeypatch, tmp_path) == 1
    assert "no verdict below" in capsys.readouterr().out

    for each in seeds(5):
        write_verdict(each, logs)
    assert command(monkeypatch, tmp_path) == 1, "a cell without a baseline is a difference"
    assert not (tmp_path / BASELINES).exists()
    assert command(monkeypatch, tmp_path, "--write") == 0
    assert command(monkeypatch, tmp_path) == 0

    before = (tmp_path / BASELINES).read_text()
    for each in seeds(5, perplexity=3.0):
        write_verdict(each, logs)
    capsys.readouterr()
    assert command(monkeypatch, tmp_path, str(logs)) == 1
    assert "worse" in capsys.readouterr().out
    assert (tmp_path / BASELINES).read_text() == before
    assert command(monkeypatch, tmp_path, "--write") == 0
    assert read(tmp_path / BASELINES)["sums_full"]["metrics"]["perplexity"]["mean"] == pytest.approx(3.002)
