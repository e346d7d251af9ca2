"""One run of one cell: model and data written, tuned through the real command line, judged, and a verdict of it.

The verdict has the keys of the smoke tier's (`tools/ci/cells.py` reads both). Beside them are `benchmark`, the cell's
name here; `metrics`, the figures of the trained model; `metrics_before`, the same for the model that it started from;
and `curve_is`, for the curve is of what falls as a model learns: the loss, or what is missing of the rewards.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmark.baselines import MISSED_REWARD
from tests.benchmark.cells import Cell, Words
from tests.benchmark.judging import JUDGED_BY, Ends, Judged
from tests.benchmark.tasks.task import Sample
from tools.ci.cells import Cell as Row
from tools.ci.cells import Claim, Phase, Point, Verdict
from training.config import RecipeKind
from training.metrics.records import StepRecord, read_records

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
    cell: Cell,
    seed: int,
    out: Path,
    *,
    target: str,
    program: Words = TRAINER,
    extra: Words = (),
    warmed_up: Path | None = None,
) -> dict[str, Any]:
    """Tunes and judges one seed; returns the content of its verdict.

    Args:
        cell: what is tuned, and how.
        seed: draws the model if it is random, the training data, and their order.
        out: a folder that is not there yet.
        target: label of the Bazel target, for the replay command.
        program: the module, with leading words, that is run in place of `training`; how a fault is planted.
        extra: further settings; they override the cell's.
        warmed_up: a folder for models that have been warmed up: of cells that start from the same model, the first
            leaves it there for the others. None leaves it in `out`.

    Raises:
        RuntimeError: the command line failed; its last words are in the message.
    """
    clock, judge = _Clock(), JUDGED_BY[cell.recipe]
    base = out / "base"
    with clock.phase("set_up", out):
        cell.task.make_model(base, seed)
        data = cell.task.make_data(seed)
    if cell.warm_up is not None:
        lines = judge.warm_up(data)
        # Named by all that it depends on.
        digest = sha256(json.dumps([cell.task.name, seed, cell.warm_up, lines]).encode()).hexdigest()
        warm = (warmed_up or out) / f"warm_up_{digest[:12]}"
        if not (warm / "model").is_dir():
            with clock.phase("warm_up", warm):
                _train(TRAINER, "sft", base, warm, (*cell.warm_up, "--seed", str(seed)), lines, data.held_out)
        base = warm / "model"
    rewards = ("--rewards", json.dumps([cell.task.reward])) if judge.learns_from_rewards else ()
    settings = (*rewards, *cell.settings, *extra, "--seed", str(seed))
    with clock.phase("train", out / "run"):
        _train(program, cell.recipe, base, out / "run", settings, judge.training(data), judge.held_out(data))
    with clock.phase("judge", out / "judged"):
        judged = judge.figures(out / "run" / cell.export, base, cell.task, data)
    records = list(read_records(out / "run" / "metrics.jsonl"))
    verdict = Verdict(
        # Name and recipe are this seed's alone, so that a history compares it with its own past and with nothing else.
        cell=Row(
            f"{cell.name}_seed_{seed}",
            f"{cell.lesson}_seed_{seed}",
            "cpu",
            cell.framework,
            cell.num_ranks,
            cell.features,
        ),
        target=target,
        status="",
        claims=tuple(_claims(cell, judged, judge.ends(records))),
        phases=tuple(clock.phases),
        curve=tuple(
            Point(each.step, round(judge.height(each), 6), round(each.gradient_norm, 6))
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
        "curve_is": MISSED_REWARD if judge.learns_from_rewards else "loss",
        "metrics": judged.after,
        "metrics_before": judged.before,
    }


def _claims(cell: Cell, judged: Judged, ends: Ends) -> Iterator[Claim]:
    """What each seed owes by itself; the comparison with the baseline is over all of them."""
    yield Claim("learns", ends.says, ends.last < ends.first, ends.last, ends.first, "")
    for name, least in cell.least.items():
        says = f"{name} reaches what the task promises."
        yield Claim(f"least_{name}", says, judged.after[name] >= least, judged.after[name], least, "")
    for name, least in cell.least_gain.items():
        # Shares of a hundred problems: 0.24 less 0.19 is 0.04999….
        gain = round(judged.after[name] - judged.before[name], 9)
        says = f"{name} has risen by what the task promises."
        yield Claim(f"gain_{name}", says, gain >= least, gain, least, f"from {judged.before[name]:.4f}")


def _train(
    program: Words,
    recipe: RecipeKind,
    base: Path,
    out: Path,
    settings: Words,
    training: Sequence[Sample],
    held_out: Sequence[Sample],
) -> None:
    """Runs the command line, on files beside `out`; without held-out samples there is no validation."""
    words = [
        *(sys.executable, "-m", *program, recipe, "--model", str(base), "--out", str(out)),
        *("--data", str(_written(out.with_name(f"{out.name}_training.jsonl"), training))),
        *settings,
    ]
    if held_out:
        words += ["--validation-path", str(_written(out.with_name(f"{out.name}_held_out.jsonl"), held_out))]
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


def _written(path: Path, samples: Sequence[Sample]) -> Path:
    """The file, with a line for each sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples), encoding="utf-8")
    return path
