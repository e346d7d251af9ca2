"""Runs a cell: set up, steps, checkpoint, steps, kill, resume, steps, checkpoints, export, tear down, load again.

What happens is in `prove`, in order. What it shows is for claims.py to say; here nothing is judged.
"""

import importlib
import inspect
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.smoke import reload
from tests.smoke.claims import PHASES, SLOWER, judge, owed
from tests.smoke.evidence import Evidence
from tests.smoke.hardware import hardware
from tests.smoke.matrix import Cell
from tests.smoke.rewards import share
from tests.smoke.session import SECONDS_MAX, Session, run_session
from tests.smoke.verdict import Phase, verdict
from tests.support.chats import write_jsonl
from training.config import RunConfig
from training.imports import import_lean
from training.models.tiny import save_tiny

NUM_SAMPLES = 36


def prove(cell: Cell, folder: Path, *, replay: str) -> dict[str, Any]:
    """Runs a cell in an empty folder and returns the content of its verdict.

    Args:
        cell: one that the plan allows.
        folder: for the model, the data and all that the run leaves.
        replay: the command that repeats this.
    """
    preload(cell)
    set_up(cell, folder)
    forked(hardware, folder / "hardware.json")
    words = [cell.recipe, *cell.words]
    slower = SLOWER if cell.is_slow else 1
    at, most = cell.settings["checkpoint.steps_between"], SECONDS_MAX * slower
    killed = run_session(words, folder, kill_after_checkpoint=at, seconds_max=most)
    phases = _phases(folder, killed, SESSION_KILLED, slower)
    (folder / "at_kill").mkdir()
    for name in ("metrics.jsonl", "run.json"):
        if (folder / "out" / name).exists():
            shutil.copy(folder / "out" / name, folder / "at_kill" / name)
    resumed = run_session(words, folder, seconds_max=most)
    phases += _phases(folder, resumed, SESSION_RESUMED, slower)
    began = time.time()
    forked(reload.reload, folder, folder / "reload.json", cell.tables.recipes[cell.recipe])
    budget = PHASES["reload"]
    phases.append(Phase("reload", time.time() - began, budget.seconds_max, 0, budget.bytes_max))
    sessions = [asdict(session) for session in (killed, resumed)]
    content = {"sessions": sessions, "phases": [asdict(each) for each in phases]}
    (folder / "sessions.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return verdict_of(Evidence(folder), cell, replay=replay)


def preload(cell: Cell) -> None:
    """Imports what the cell's processes will, once for all of them, and settles that none starts threads before."""
    torch.set_num_threads(1)
    import training.recipes  # noqa: F401 - for the sessions

    if cell.config.lora:
        import_lean("peft")
    if cell.config.model.quantization != "none" or cell.config.optimizer.kind == "adamw_8bit":
        import_lean("bitsandbytes")
    module, _, function = cell.tables.frameworks[cell.framework].preload.partition(":")
    # What is told of a device looks at it, and then cannot be forked.
    if module and (cell.variant == "cpu" or not function):
        loaded = importlib.import_module(module)
        if function:
            getattr(loaded, function)("cpu")


def set_up(cell: Cell, folder: Path) -> None:
    """Writes a tiny model, samples and a reward, as a person would have them."""
    (folder / "cell.json").write_text(json.dumps({"name": cell.name}) + "\n", encoding="utf-8")
    save_tiny(folder / cell.settings["model.path"])
    write_jsonl(folder / cell.settings["data.path"], cell.tables.recipes[cell.recipe].samples(NUM_SAMPLES))
    if "rl.rewards" in cell.settings:
        (folder / "rewards.py").write_text(inspect.getsource(share), encoding="utf-8")


def forked(work: Callable[..., object], *arguments: Any) -> None:
    """Calls a function in a process of its own. If it fails, what it did not write is missing from the evidence."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()


def verdict_of(evidence: Evidence, cell: Cell, *, replay: str) -> dict[str, Any]:
    """Judges the evidence; what of it is missing shows as claims that do not hold."""
    checks = owed(cell)

    def there(read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except (OSError, ValueError, KeyError):
            return otherwise

    golden = evidence.golden
    return verdict(
        cell,
        expected={name: check.says for name, check in checks.items()},
        claims=judge(evidence, checks),
        phases=there(lambda: evidence.phases, []),
        curve=there(lambda: evidence.curve, []),
        golden=golden.points if golden else None,
        tolerance=cell.tolerance,
        completions=there(lambda: evidence.completions_of_last, []) if "rl.rewards" in cell.settings else [],
        seed=cell.settings.get("run.seed", RunConfig("out").seed),
        versions=there(lambda: evidence.versions, {}),
        hardware=there(lambda: evidence.hardware, {}),
        replay=replay,
    )


SESSION_KILLED: Mapping[str, str | None] = {"set up": "plan.txt", "steps, checkpoint, kill": None}
SESSION_RESUMED: Mapping[str, str | None] = {
    "resume": "plan.txt",
    "steps, checkpoints": "run.json",
    "export": "summary.json",
    "tear down": None,
}
"""The phases of a session, each with the file whose last change ends it; None is the end of the session."""


def _phases(folder: Path, session: Session, ended_by: Mapping[str, str | None], slower: int) -> list[Phase]:
    """A session cut into phases, at moments that its files tell, with the bytes that were written in each.

    A phase whose file is not there is left out. What a checkpoint took is counted in the session that wrote it: none
    is rotated away before that is over.
    """
    files = [path.stat() for path in (folder / "out").rglob("*") if path.is_file()]
    phases, begin = [], session.began
    for name, file in ended_by.items():
        path = folder / "out" / str(file)
        if file and not path.exists():
            continue
        end = path.stat().st_mtime if file else session.ended
        written = sum(each.st_size for each in files if begin < each.st_mtime <= end)
        budget = PHASES[name]
        phases.append(Phase(name, max(end - begin, 0.0), budget.seconds_max * slower, written, budget.bytes_max))
        begin = end
    return phases
