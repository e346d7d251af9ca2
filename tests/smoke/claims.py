"""The claims: what must be true of a run for its cell to be proven, each from structured files.

A closed list. `judge` evaluates every claim of it, and a claim whose evidence is missing or cannot be read does not
hold: that a file is not there is no reason to look away.
"""

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.smoke.evidence import Evidence
from tests.smoke.matrix import Cell
from tests.smoke.rewards import share
from tests.smoke.verdict import Claim
from training.checkpoint.manifest import MANIFEST, committed, file_of_rank, newest, verified
from training.errors import CheckpointCorrupt
from training.metrics.records import CheckpointRecord
from training.plan import Plan

MEMORY_MAX_BYTES = 3 * 2**30
"""Of one process, or of one accelerator: libraries are most of it, as the model has 40,000 weights."""

MERGED_RELATIVE = 1e-4
"""Merging an adapter adds in another order than running it beside its layer does."""

MOVED_LEAST = 1e-2
"""Least distance of the trained logits from the base model's: an export of the base model would be equal to nothing."""

GROUPS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
"""Which library ranks must talk through, by device."""


@dataclass(frozen=True)
class Found:
    """What looking at the evidence gave."""

    holds: bool
    measured: Any = None
    bound: Any = None
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """A claim and how to look whether it holds."""

    says: str
    look: Callable[[Evidence], Found]


def judge(evidence: Evidence, checks: dict[str, Check]) -> Iterator[Claim]:
    """Each claim, evaluated."""
    for name, check in checks.items():
        try:
            found = check.look(evidence)
        except Exception as error:
            # Whatever it is, it kept the claim from being evaluated.
            found = Found(False, detail=f"cannot be evaluated: {type(error).__name__}: {error}")
        yield Claim(name, check.says, found.holds, found.measured, found.bound, found.detail)


def _ends(evidence: Evidence) -> Found:
    codes = [session["exit_code"] for session in evidence.sessions]
    last = evidence.sessions[-1]["complained"].strip().splitlines()
    steps = [evidence.summary["num_steps"], evidence.summary["num_steps_planned"], evidence.summary["stopped_by"]]
    planned = evidence.cell.settings["run.num_steps"]
    return Found(
        codes == [-9, 0] and steps == [planned, planned, None],
        {"exit_codes": codes, "steps": steps},
        {"exit_codes": [-9, 0], "steps": [planned, planned, None]},
        last[-1] if last else "",
    )


def _plan(evidence: Evidence) -> Found:
    expected = evidence.cell.answer()
    assert isinstance(expected, Plan)
    wanted = json.loads(json.dumps(asdict(expected)))
    differing = {
        name: [run["plan"].get(name), value]
        for run in (evidence.run_at_kill, evidence.run)
        for name, value in wanted.items()
        if run["plan"].get(name) != value
    }
    return Found(not differing, {name: got for name, (got, _) in differing.items()}, len(wanted), str(differing or ""))


def _world(evidence: Evidence) -> Found:
    cell = evidence.cell
    device = cell.settings["run.device"]
    problems = []
    for run in (evidence.run_at_kill, evidence.run):
        ranks = run["ranks"]
        if [rank["rank"] for rank in ranks] != list(range(cell.cards)):
            problems.append(f"ranks {[rank['rank'] for rank in ranks]}")
        if {rank["num_ranks"] for rank in ranks} != {cell.cards}:
            problems.append(f"groups of {[rank['num_ranks'] for rank in ranks]}")
        if len({rank["process"] for rank in ranks}) != cell.cards:
            problems.append("ranks share a process")
        if {rank["device"].partition(":")[0] for rank in ranks} != {device}:
            problems.append(f"devices {[rank['device'] for rank in ranks]}")
        if device != "cpu" and cell.framework != "single" and len({rank["device"] for rank in ranks}) != cell.cards:
            problems.append("ranks share a device")
        groups = {rank["group"] for rank in ranks}
        if cell.framework == "single" and groups != {""}:
            problems.append(f"a single process with a group, {groups}")
        if cell.framework != "single" and not all(GROUPS[device] in group for group in groups):
            problems.append(f"groups talk through {groups}")
    found = [f"{rank['device']} ({rank['device_name']})" for rank in evidence.run["ranks"]]
    return Found(not problems, found, f"{cell.cards} × {device}", "; ".join(problems))


def _shares(evidence: Evidence) -> Found:
    """Only some backends shard; a rank of the others holds everything."""
    total, cards = evidence.reload["num_weights"], evidence.cell.cards
    held = [rank["num_weights_held"] for rank in evidence.run["ranks"]]
    if evidence.cell.tables.frameworks[evidence.cell.framework].shards:
        shards = evidence.cell.settings.get("parallel.shard_ranks", cards)
        # A weight of few rows cannot be cut evenly.
        most = total * (1.25 / shards if shards > 1 else 1)
        everywhere = total * (cards // shards)
        return Found(sum(held) == everywhere and max(held) <= most, held, {"sum": everywhere, "each_max": most})
    return Found(held == [total] * cards, held, [total] * cards)


def _loss(evidence: Evidence) -> Found:
    losses = [point.loss for point in evidence.curve]
    if not losses or not all(math.isfinite(each.loss) and math.isfinite(each.gradient_norm) for each in evidence.curve):
        return Found(False, [str(each) for each in losses], "finite")
    bound = evidence.cell.tables.recipes[evidence.cell.recipe].loss_falls_to * losses[0]
    return Found(losses[-1] < bound, [losses[0], losses[-1]], bound)


def _finite(evidence: Evidence) -> Found:
    numbers = [number for point in evidence.curve for number in (point.loss, point.gradient_norm)]
    still = [point.step for point in evidence.curve if not point.gradient_norm > 0]
    return Found(
        bool(numbers) and all(map(math.isfinite, numbers)) and not still, {"without_gradient": still}, "finite"
    )


def _completions(evidence: Evidence) -> Found:
    """A rollout is written when it is drawn, so one that the kill undid must not be there twice."""
    settings = evidence.cell.settings
    between, drawn = settings["rl.steps_per_rollout"], settings["batch.samples_per_step"]
    steps = range(0, settings["run.num_steps"], between)
    written = Counter(each["step"] for each in evidence.completions)
    wrong = [each["completion"] for each in evidence.completions if each["reward"] != share("", each["completion"])]
    reward = {
        step: statistics.fmean(each["reward"] for each in evidence.completions if each["step"] == step)
        for step in written
    }
    recorded = {step: evidence.steps[step].metrics["reward_mean"] for step in steps}
    differing = [step for step in steps if not math.isclose(recorded[step], reward.get(step, math.inf), rel_tol=1e-9)]
    return Found(
        written == dict.fromkeys(steps, between * drawn) and not wrong and not differing,
        {"written": dict(written), "wrong_rewards": wrong, "differing_means": differing},
        {"each_rollout": between * drawn},
    )


def _resume(evidence: Evidence) -> Found:
    before, after = (
        {
            (type(record).__name__, record.step): _timeless(record)
            for record in records
            if not isinstance(record, CheckpointRecord)
        }
        for records in (evidence.records_at_kill, evidence.records)
    )
    first = evidence.run["first_step"]
    again = sorted(step for kind, step in before if kind == "StepRecord" and step > first)
    differing = [f"{kind} {step}" for (kind, step), each in before.items() if after.get((kind, step)) != each]
    numbers = [step.step for step in evidence.steps]
    whole = numbers == list(range(1, len(numbers) + 1))
    return Found(
        first == evidence.cell.settings["checkpoint.steps_between"] and len(again) >= 2 and whole and not differing,
        {"resumed_after": first, "steps_taken_again": again, "differing": differing},
        {"differing": []},
        "" if whole else f"steps {numbers}",
    )


def _timeless(record: Any) -> dict[str, Any]:
    """A record without what no two runs share: times, also those among its metrics."""
    values = dataclasses.asdict(record)
    metrics = {name: value for name, value in values.pop("metrics", {}).items() if not name.startswith("seconds")}
    return {name: value for name, value in values.items() if name != "seconds"} | {"metrics": metrics}


def _checkpoint(evidence: Evidence) -> Found:
    checkpoints = evidence.out / "checkpoints"
    found = committed(checkpoints)
    between, last = evidence.cell.settings["checkpoint.steps_between"], evidence.cell.settings["run.num_steps"]
    kept = [f"step-{step:08d}" for step in range(between, last + 1, between)][-2:]
    problems = []
    for path in found:
        try:
            files = verified(path)
        except CheckpointCorrupt as error:
            problems.append(str(error))
            continue
        for rank in range(evidence.cell.cards):
            if f"{file_of_rank('random', rank, evidence.cell.cards)}.safetensors" not in files:
                problems.append(f"{path.name} has nothing of rank {rank}")
        stray = {each.name for each in path.iterdir()} - files.keys() - {MANIFEST}
        problems += [f"{path.name}/{name} is in no manifest" for name in sorted(stray)]
    if newest(checkpoints) != checkpoints / kept[-1]:
        problems.append("the newest is not the last")
    problems += [path.name for path in checkpoints.iterdir() if path.name.startswith(".")]
    return Found(
        [path.name for path in found] == kept and not problems, [path.name for path in found], kept, "; ".join(problems)
    )


def _export(evidence: Evidence) -> Found:
    expected = ["adapter", "merged"] if evidence.run["plan"]["lora"] else ["model"]
    measured = evidence.reload["exports"]
    bound = {
        kind: {"difference": MERGED_RELATIVE if kind == "merged" else 0.0, "moved": MOVED_LEAST} for kind in expected
    }
    holds = sorted(measured) == expected and all(
        each["difference"] <= bound[kind]["difference"] and each["moved"] >= MOVED_LEAST
        for kind, each in measured.items()
    )
    return Found(holds, measured, bound)


def _golden(evidence: Evidence) -> Found:
    golden = evidence.golden
    if golden is None:
        return Found(False, None, evidence.cell.curve, "there is no golden curve of this name")
    if [point.step for point in evidence.curve] != [point.step for point in golden.points]:
        return Found(False, len(evidence.curve), len(golden.points), "other steps")
    worst, where = max(
        (
            _apart(getattr(ours, name), getattr(theirs, name), least),
            f"{name} of step {ours.step}",
        )
        for ours, theirs in zip(evidence.curve, golden.points, strict=True)
        for name, least in (("loss", golden.loss_least), ("gradient_norm", 0.0))
    )
    return Found(worst <= golden.tolerance, worst, golden.tolerance, where)


def _apart(one: float, golden: float, least: float) -> float:
    """How far a number is from the golden one, relative to that; what is not finite is farthest, and `max` sees it."""
    return abs(one - golden) / max(abs(golden), least) if math.isfinite(one) else math.inf


def _leaks(evidence: Evidence) -> Found:
    left = [dict(session["left"]) for session in evidence.sessions]
    # Compiled code is there for the next run. A process that is killed cannot remove where its ranks met.
    for session, kept in zip(left, (("torchinductor_", "plumbline-ranks-"), ("torchinductor_",)), strict=True):
        session["temporary"] = [name for name in session["temporary"] if not name.startswith(kept)]
    return Found(not any(any(each.values()) for each in left), left, "nothing")


def _memory(evidence: Evidence) -> Found:
    processes = [session["memory_peak_bytes"] for session in evidence.sessions]
    devices = [rank["memory_peak_bytes"] for rank in evidence.run["ranks"]]
    measured = {"processes": processes, "devices": devices}
    holds = len(processes) == 2 and min(devices) > 0 and max(processes + devices) <= MEMORY_MAX_BYTES
    return Found(holds, measured, MEMORY_MAX_BYTES)


def _cost(evidence: Evidence) -> Found:
    phases = evidence.phases
    over = [f"{each.name} took {each.seconds:.1f} s" for each in phases if not 0 <= each.seconds <= each.seconds_max]
    over += [f"{each.name} wrote {each.bytes_written} bytes" for each in phases if each.bytes_written > each.bytes_max]
    over += [f"nothing tells where {name} ended" for name in PHASES if name not in {each.name for each in phases}]
    return Found(
        [each.name for each in phases] == list(PHASES) and not over,
        {
            "seconds": {each.name: round(each.seconds, 2) for each in phases},
            "bytes": {each.name: each.bytes_written for each in phases},
        },
        {
            "seconds": {each.name: each.seconds_max for each in phases},
            "bytes": {each.name: each.bytes_max for each in phases},
        },
        "; ".join(over),
    )


def _known(evidence: Evidence) -> Found:
    """What kind of machine it is, and that it has the cards; which driver they have not every kernel says."""
    machine, versions, cell = evidence.hardware, evidence.versions, evidence.cell
    absent = [name for name in ("machine", "kernel", "processor", "cores", "memory_bytes") if not machine.get(name)]
    absent += [name for name in ("python", "torch", "transformers") if not versions.get(name)]
    if not machine.get("torch_build", {}).get("version"):
        absent.append("torch_build")
    cards = [each["name"] for each in machine["accelerators"] if each["name"] and each["memory_bytes"] > 0]
    needed = 0 if cell.variant == "cpu" else cell.cards
    return Found(
        not absent and len(cards) >= needed,
        {"processor": machine.get("processor"), "cards": cards, "torch": versions.get("torch")},
        {"cards": needed},
        f"not known: {', '.join(absent)}" if absent else "",
    )


@dataclass(frozen=True)
class Budget:
    """What a phase may cost."""

    seconds_max: float
    bytes_max: int


PHASES = {
    "set up": Budget(120.0, 2**20),
    "steps, checkpoint, kill": Budget(120.0, 4 * 2**20),
    "resume": Budget(120.0, 2**20),
    "steps, checkpoints": Budget(120.0, 8 * 2**20),
    "export": Budget(60.0, 4 * 2**20),
    "tear down": Budget(30.0, 2**20),
    "reload": Budget(60.0, 2**20),
}
"""Many times what each takes on two busy cores, so that only a hang or a blunder is over it. A checkpoint or an export
of a tiny model is well under a megabyte."""

SLOWER = 3
"""Times as long as that may take what a slow cell does."""

CHECKS: dict[str, Check] = {
    "ends_well": Check("It dies of the kill alone, and goes on to the last step.", _ends),
    "plan_is_the_cells": Check("Both sessions followed the plan that the cell stands for, setting by setting.", _plan),
    "world_is_as_asked": Check("As many ranks as cards took part, each on a device of its own, in one group.", _world),
    "weights_are_shared_out": Check("Each rank holds its part of the weights where the backend shards.", _shares),
    "loss_falls": Check("Every loss and gradient norm is finite, and the loss falls.", _loss),
    "resume_is_exact": Check("Steps that the kill undid come out the same, bit for bit, when taken again.", _resume),
    "checkpoint_is_committed": Check(
        "The newest two checkpoints are whole, to the byte, and name every rank.", _checkpoint
    ),
    "export_reloads": Check("What was exported has, loaded again, the logits of the trained weights.", _export),
    "curve_is_golden": Check("The curve is the one of every other framework and number of cards.", _golden),
    "nothing_leaks": Check("No process, port, shared memory or temporary file is left.", _leaks),
    "memory_is_in_budget": Check("No process and no device needed more memory than budgeted.", _memory),
    "cost_is_in_budget": Check("Every phase ended, took no longer and wrote no more than budgeted.", _cost),
    "hardware_is_known": Check("The machine, its cards and the versions of what took part are known.", _known),
    "losses_are_finite": Check("Every loss and gradient norm is finite, and every step has a gradient.", _finite),
    "completions_are_whole": Check(
        "Each completion that was learned from is written once, with its reward, of which the records have the mean.",
        _completions,
    ),
}
"""Every claim that there is, by its name; which of them a cell owes, its recipe's row says."""


def owed(cell: Cell) -> dict[str, Check]:
    """The claims of a cell."""
    return {name: CHECKS[name] for name in cell.claims}
