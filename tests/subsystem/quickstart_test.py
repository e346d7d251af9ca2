"""The quickstart without any package of its own, as a newcomer types it, with seconds instead of minutes."""

import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.subsystem.processes import Started, environment
from training.errors import EXIT_INTERRUPTED
from training.metrics.records import StepRecord, ValidationRecord, read_records
from training.quickstart import scratch
from training.quickstart.command import main
from training.quickstart.library import read_modules

OUT = "plumbline-quickstart"


FROM_SCRATCH = partial(main, target="//training:quickstart_from_scratch", chat=None, drawing=lambda: None)
"""The program, as `training.quickstart.from_scratch` calls it."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where somebody has run it for the first time, and what it said."""
    where = tmp_path_factory.mktemp("newcomer")
    typed = [sys.executable, "-m", "training.quickstart.from_scratch", "--seconds", "1"]
    done = subprocess.run(typed, cwd=where, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return where, done.stdout


def test_a_newcomer_gets_a_model_its_metrics_and_a_report(first: tuple[Path, str]) -> None:
    where, said = first
    out = where / OUT
    records = list(read_records(out / "run" / "metrics.jsonl"))
    steps = [each for each in records if isinstance(each, StepRecord)]
    held_out = [each.loss for each in records if isinstance(each, ValidationRecord)]
    assert len(steps) >= 2
    assert held_out[-1] < held_out[0]

    # What it printed last is what it left, and the figures are those of the metrics.
    report = (out / "report.txt").read_text()
    assert said.endswith(f"\n{report}")
    assert f"{held_out[0]:.2f} before, {held_out[-1]:.2f} after (nats per byte" in report
    assert "“Return the”" in report
    assert "matplotlib is not there" in report

    # The second act goes on from the first one's model, and what it printed is what it left.
    told = re.search(r"(\d\.\d\d) before, (\d\.\d\d) after, as a mean over \d+ held-out beginnings", report)
    assert told
    assert json.loads((out / "quickstart.json").read_text())["rewarded_steps"] >= 2
    rewarded = [each for each in read_records(out / "rewarded/metrics.jsonl") if isinstance(each, StepRecord)]
    completions = [json.loads(line) for line in (out / "rewarded/completions.jsonl").read_text().splitlines()]
    assert f"{len(rewarded)} steps of GRPO on {len(completions)} answers" in report
    assert {each["reward"] for each in completions} <= {0.0, 1.0}
    assert "training grpo --model plumbline-quickstart/run/model" in said
    reloaded: Any = AutoModelForCausalLM.from_pretrained(out / "rewarded" / "model")
    assert "python -m training sft --model plumbline-quickstart/base --data text.jsonl --out my-run" in report
    for path in ("run/model", "run/metrics.jsonl", "run/checkpoints"):
        assert f"{OUT}/{path}" in report
        assert (out / path).exists()
    assert "tokens/s" in said
    assert " left" in said, "the time that the rest will take"

    # The model reloads, and is the one that was trained, not the one it started from.
    trained: Any = AutoModelForCausalLM.from_pretrained(out / "run" / "model")
    base: Any = AutoModelForCausalLM.from_pretrained(out / "base")
    ids = AutoTokenizer.from_pretrained(out / "run" / "model")("Return the ", return_tensors="pt")["input_ids"]
    assert not torch.equal(trained(input_ids=ids).logits, base(input_ids=ids).logits)
    assert not torch.equal(reloaded(input_ids=ids).logits, base(input_ids=ids).logits)


def interrupted(*words: str, where: Path, at: str) -> list[str]:
    """Sends Ctrl-C at the first line that matches, and returns all lines, once the program has ended as it should."""
    process = Started(*words, where=where, program=FROM_SCRATCH)
    said: list[str] = []
    sent = False
    for line in process.stdout:
        said.append(line)
        if not sent and re.match(at, line):
            process.send_signal(signal.SIGINT)
            sent = True
    done = process.ended()
    assert done.returncode == EXIT_INTERRUPTED, "".join(said) + done.stderr
    return said


@pytest.fixture
def fewer_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forked learns from few, which are read here: reading all takes longer than the training."""
    monkeypatch.setattr(scratch, "NUM_CHARACTERS_TRAINING_MAX", 100_000)
    modules = read_modules()
    monkeypatch.setattr(scratch, "read_modules", lambda: modules)


@pytest.mark.usefixtures("fewer_documents")
def test_a_second_run_loses_nothing_and_goes_on_after_ctrl_c(first: tuple[Path, str]) -> None:
    """The first is left as it is, and that is said; the same command goes on with the second."""
    where, _ = first
    words = ("--seconds", "20")
    before = {path: path.stat().st_mtime_ns for path in (where / OUT).rglob("*")}
    said = interrupted(*words, where=where, at=r"step [1-9]\d*/\d+  loss")
    kept = f"{OUT} (finished from-scratch, seed 0, 1 s)"
    assert f"{kept}: left as it is. This run goes to {OUT}-2." in "".join(said)
    assert "The same command goes on from there:\n" in said
    assert said[-1] == f"  python -m training.quickstart {' '.join(words)}\n"
    assert not json.loads((where / f"{OUT}-2" / "quickstart.json").read_text())["is_finished"]

    said = interrupted(*words, where=where, at="start ")
    assert f"{OUT}-2 holds this run, unfinished: going on where it stopped." in "".join(said)
    assert any(re.match(r"start +after step-\d{8}", line) for line in said)
    assert not any(line.startswith(("before ", "speed ")) for line in said), "what was done is not done again"
    assert {path: path.stat().st_mtime_ns for path in (where / OUT).rglob("*")} == before
