"""One run of one cell: model and data written, tuned through the real command line, judged, and a verdict of it.

The verdict has the keys of the smoke tier's (`tools/ci/cells.py` reads both). Beside them are `benchmark`, the cell's
name here; `metrics`, the battery for the tuned model; and `metrics_before`, the same for the model that it started
from.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmark.cells import Cell, Words
from tests.benchmark.measure import measure, metrics
from tools.ci.cells import Cell as Row
from tools.ci.cells import Claim, Phase, Point, Verdict
from training.metrics.records import StepRecord, ValidationRecord, read_records

TRAINER: Words = ("training",)

CURVE_TOLERANCE = 10.0
"""Relative difference of a loss at which a history calls the curve another one. Wide, since runs that differ by
rounding part for good: column addition on one process and on two agrees to 3e-6 up to step 50, to 2 % up to step 100,
and at single later steps one loss can be many times the other. Whether a model has become worse, the battery says."""


@dataclass
class _Clock:
    """Seconds and bytes of each stretch of a run."""

    phases: list[Phase] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str, folder: Path) -> Iterator[None]:
        began = time.monotonic()
        yield
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        # No budget: the benchmark asks how good a model gets, and the smoke tier how long things take.
        self.phases.append(Phase(name, time.monotonic() - began, 0.0, written))


def run(
    cell: Cell, seed: int, out: Path, *, target: str, program: Words = TRAINER, extra: Words = ()
) -> dict[str, Any]:
    """Tunes and judges one seed; returns the content of its verdict.

    Args:
        cell: what is tuned, and how.
        seed: draws the model if it is random, the training data, and their order.
        out: a folder that is not there yet.
        target: label of the Bazel target, for the replay command.
        program: the module, with leading words, that is run in place of `training`; how a fault is planted.
        extra: further settings; they override the cell's.

    Raises:
        RuntimeError: the command line failed; its last words are in the message.
    """
    clock = _Clock()
    base = out / "base"
    with clock.phase("set_up", out):
        cell.task.make_model(base, seed)
        data = cell.task.make_data(seed)
        write_jsonl(out / "train.jsonl", data.training)
        write_jsonl(out / "held_out.jsonl", data.held_out)
    if cell.warm_up is not None:
        with clock.phase("warm_up", out / "warm_up"):
            _train(TRAINER, base, out, out / "warm_up", seed, cell.warm_up)
        base = out / "warm_up" / "model"
    with clock.phase("train", out / "run"):
        _train(program, base, out, out / "run", seed, (*cell.settings, *extra))
    with clock.phase("judge", out / "judged"):
        before = measure(base, cell.task, data, samples=False)
        after = measure(out / "run" / cell.export, cell.task, data, samples=True)
    records = list(read_records(out / "run" / "metrics.jsonl"))
    figures = metrics(after, before)
    verdict = Verdict(
        # Name and recipe are this seed's alone, so that a history compares it with its own past and with nothing else.
        cell=Row(
            f"{cell.name}_seed_{seed}",
            f"{cell.task.name}_seed_{seed}",
            "cpu",
            cell.framework,
            cell.num_ranks,
            cell.features,
        ),
        target=target,
        status="",
        claims=tuple(_claims(cell, figures, [each.loss for each in records if isinstance(each, ValidationRecord)])),
        phases=tuple(clock.phases),
        curve=tuple(
            Point(each.step, round(each.loss, 6), round(each.gradient_norm, 6))
            for each in records
            if isinstance(each, StepRecord)
        ),
        golden=(),
        tolerance=CURVE_TOLERANCE,
        seed=seed,
        replay=f"./bazelw test {target} --nocache_test_results",
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers")},
        hardware=hardware(),
    )
    status = "proven" if all(claim.holds for claim in verdict.claims) else "failed"
    return {
        "schema": 1,
        **asdict(verdict),
        "status": status,
        "benchmark": cell.name,
        "metrics": figures,
        "metrics_before": {name: value for name, value in metrics(before, before).items() if name != "win_rate"},
    }


def _claims(cell: Cell, figures: dict[str, float], held_out_losses: list[float]) -> Iterator[Claim]:
    """What each seed owes by itself; the comparison with the baseline is over all of them."""
    first, last = held_out_losses[0], held_out_losses[-1]
    yield Claim("learns", "The held-out loss after training is below the one before.", last < first, last, first, "")
    for name, least in cell.least.items():
        says = f"{name} reaches what the task promises."
        yield Claim(f"least_{name}", says, figures[name] >= least, figures[name], least, "")


def _train(program: Words, base: Path, data: Path, out: Path, seed: int, settings: Words) -> None:
    words = [
        *(sys.executable, "-m", *program, "sft", "--model", str(base), "--out", str(out), "--seed", str(seed)),
        *("--data", str(data / "train.jsonl"), "--validation-path", str(data / "held_out.jsonl"), *settings),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "BUILD_WORKING_DIRECTORY"} | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)} failed ({done.returncode}):\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        )


def hardware() -> dict[str, Any]:
    """What this ran on, as far as it may explain another number."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": platform.machine(),
        "cpu": models[0] if models else platform.processor(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
    }


def write_jsonl(path: Path, samples: list[dict[str, Any]]) -> None:
    """Writes one line a sample."""
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples), encoding="utf-8")
