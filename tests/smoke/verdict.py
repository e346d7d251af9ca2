"""verdict.json: all claims of one run of one cell, with what it takes to judge and to repeat it.

    {"schema": 1,
     "cell": {"name", "recipe", "variant", "framework", "cards", "features": […]},
     "target": "//tests/smoke:smoke.sft_lora_fsdp_x2",
     "status": "proven" | "failed",
     "claims": [{"name", "says", "holds": true | false, "measured", "bound", "detail"}, …],
     "phases": [{"name", "seconds", "seconds_max", "bytes_written", "bytes_max"}, …],
     "curve": [{"step", "loss", "gradient_norm"}, …],  null where a number is not finite
     "golden": the same | null,  "tolerance": 0.0001,
     "completions": [{"prompt", "completion", "rewards": {name: reward}}, …],  a few of the last, where any are drawn
     "seed": 0,  "versions": {package: version},  "hardware": {…},  "replay": "./bazelw test …"}

The claims of a verdict are a closed list. One that was not evaluated is in it all the same, as one that does not hold:
what nobody looked at was not proven. Numbers that JSON has not are null in curves and words elsewhere: a run that went
wrong must be able to say so.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.smoke.matrix import Cell

SCHEMA = 1
FILE = "verdict.json"


@dataclass(frozen=True)
class Claim:
    """One checked statement."""

    name: str
    says: str
    """The statement as a sentence, the same whether it holds or not."""
    holds: bool
    measured: Any = None
    """JSON value that was found."""
    bound: Any = None
    """JSON value that it was held against."""
    detail: str = ""
    """What a person needs beside the two to understand a failure."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a run, with what it may cost."""

    name: str
    seconds: float
    seconds_max: float
    bytes_written: int
    bytes_max: int


@dataclass(frozen=True)
class Point:
    """One step of a loss curve."""

    step: int
    loss: float
    gradient_norm: float


def verdict(
    cell: Cell,
    *,
    expected: Mapping[str, str],
    claims: Iterable[Claim],
    phases: Sequence[Phase],
    curve: Sequence[Point],
    golden: Sequence[Point] | None,
    tolerance: float,
    seed: int,
    versions: Mapping[str, str],
    hardware: Mapping[str, Any],
    replay: str,
    completions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of verdict.json.

    Args:
        cell: what was run.
        expected: name → statement of every claim that must have been evaluated.
        claims: those that were; one that is not expected, or comes twice, does not hold.
        phases: in the order of the run.
        curve: every step.
        golden: the curve that it is held against; None if there is none.
        tolerance: relative difference that the golden curve allows.
        seed: of the run.
        versions: of what took part.
        hardware: that it ran on.
        replay: the command that repeats it.
        completions: some of those that it learned from, if it did.
    """
    judged: dict[str, Claim] = {}
    for claim in claims:
        if claim.name not in expected or claim.name in judged:
            detail = "evaluated twice" if claim.name in judged else "no claim of this kind of cell"
            claim = Claim(claim.name, claim.says, False, claim.measured, claim.bound, detail)
        judged[claim.name] = claim
    for name, says in expected.items():
        judged.setdefault(name, Claim(name, says, False, detail="it was not evaluated"))
    return {
        "schema": SCHEMA,
        "cell": {
            "name": cell.name,
            "recipe": cell.recipe,
            "variant": cell.variant,
            "framework": cell.framework,
            "cards": cell.cards,
            "features": list(cell.features),
        },
        "target": cell.target,
        "status": "proven" if all(each.holds for each in judged.values()) else "failed",
        "claims": [_said(asdict(each)) for each in judged.values()],
        "phases": [asdict(each) for each in phases],
        "curve": [_drawn(each) for each in curve],
        "golden": None if golden is None else [_drawn(each) for each in golden],
        "tolerance": tolerance,
        "completions": [_said(dict(each)) for each in completions],
        "seed": seed,
        "versions": dict(versions),
        "hardware": dict(hardware),
        "replay": replay,
    }


def _said(value: Any) -> Any:
    """A JSON value in which numbers that are not finite are words: nan, inf, -inf."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _said(each) for name, each in value.items()}
    return [_said(each) for each in value] if isinstance(value, list | tuple) else value


def _drawn(point: Point) -> dict[str, Any]:
    """A point of a curve, whose numbers are null where they are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(point).items()}


def write(content: Mapping[str, Any], folder: Path) -> Path:
    """Writes verdict.json into a folder, made if absent; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def failures(content: Mapping[str, Any]) -> str:
    """What does not hold, a line for each claim, for the message of a failed test."""
    lines = [
        f"{each['name']}: {each['says']} measured {each['measured']}, bound {each['bound']}. {each['detail']}".rstrip()
        for each in content["claims"]
        if not each["holds"]
    ]
    return "\n".join([f"{content['target']}: {len(lines)} claims do not hold", *lines, f"replay: {content['replay']}"])
