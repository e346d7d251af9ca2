"""What was measured, kept: a line of JSON for each case and run, and of those lines a table and a picture's marks.

    .plumbline/bench/train.jsonl    every run on this machine, with each round
    docs/speed.jsonl                what was published: tables and picture of the documents are made of it

A line is appended as soon as its case is done, so that a run that is stopped has lost one case and no more.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.bench.rounds import Spread, machine

RUNS = Path(".plumbline/bench/train.jsonl")
PUBLISHED = Path("docs/speed.jsonl")


@dataclass(frozen=True)
class Row:
    """What a table says of a contender."""

    case: str
    contender: str
    unit: str
    speed: Spread
    speed_ratio: Spread
    bytes: Spread
    memory_ratio: Spread
    also: dict[str, float]
    """The middle of each of its other figures."""
    target: str
    """`met`, or which it misses; empty if it has none."""
    also_ratio: dict[str, Spread] = field(default_factory=dict)
    """Of other figures that are compared: to the first contender's."""
    wanted: dict[str, float] = field(default_factory=dict)
    """What its targets are, by what they are of: a ratio at least, and of memory at most."""

    @property
    def misses(self) -> bool:
        """Whether it misses one."""
        return self.target not in ("", "met")


@dataclass(frozen=True)
class Kept:
    """A case as it came out once."""

    case: str
    says: str
    when: str
    commit: str
    num_rounds: int
    machine: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]
    load: float | None = None
    """Programs that wanted a processor meanwhile, this one among them, on average; None if nobody looked."""
    goes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Each round of each contender."""


def of_now(workspace: Path) -> dict[str, Any]:
    """When it is, which commit this is, with a plus if files differ from it, on what machine and how busy that is."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(workspace), *words], capture_output=True, text=True, check=True).stdout

    changed = "+" if git("status", "--porcelain", "--untracked-files=no").strip() else ""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "commit": git("rev-parse", "--short", "HEAD").strip() + changed,
        "machine": machine(),
        "load": round(os.getloadavg()[1], 1),
    }


def append(path: Path, kept: Kept) -> None:
    """Adds a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"schema": 1, **asdict(kept)}) + "\n")


def read(path: Path) -> list[Kept]:
    """Every line, in order; none if there is no such file."""
    if not path.is_file():
        return []
    return [_kept(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def newest(lines: Iterable[Kept], order: Sequence[str]) -> list[Kept]:
    """Each case as its last line has it, in the order of the names."""
    last = {each.case: each for each in lines}
    return [last[name] for name in order if name in last]


def _kept(values: dict[str, Any]) -> Kept:
    rows = []
    for row in values.pop("rows"):
        spreads: dict[str, Any] = {
            name: Spread(**row.pop(name)) for name in ("speed", "speed_ratio", "bytes", "memory_ratio")
        }
        also_ratio = {name: Spread(**each) for name, each in row.pop("also_ratio").items()}
        rows.append(Row(**row, **spreads, also_ratio=also_ratio))
    assert values.pop("schema") == 1, "written by another version"
    return Kept(**values, rows=rows)


def said(speed: float) -> str:
    """Three digits or more."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.2f}"


def ratio(spread: Spread) -> str:
    """The middle, and from the least to the greatest if they differ."""
    ends = "" if spread.min == spread.max else f" ({spread.min:.2f} to {spread.max:.2f})"
    return f"{spread.median:.2f}{ends}"


def table(rows: Sequence[Row]) -> str:
    """Every contender, as Markdown."""
    lines = ["| case | contender | speed | × | MB | × | also | target |", f"|{'---|' * 8}"]
    for row in rows:
        also = [
            f"{key} {value:,.4g}" + (f" (× {ratio(row.also_ratio[key])})" if key in row.also_ratio else "")
            for key, value in row.also.items()
            if not key.startswith(PART)
        ]
        memory = f"{row.memory_ratio.median:.2f}" if row.memory_ratio.median else ""
        target = f"**{row.target}**" if row.misses else row.target
        cells = [row.case, row.contender, f"{said(row.speed.median)} {row.unit}", ratio(row.speed_ratio)]
        cells += [f"{row.bytes.median / 1e6:,.0f}", memory, ", ".join(also), target]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PART = "part_"
"""Begins the name of a figure that is the percentage of a whole which one of its parts takes."""


def parts_table(rows: Sequence[Row]) -> str:
    """What the whole of each contender is made of, for those that say so, as Markdown; empty if none does."""
    told = [row for row in rows if any(key.startswith(PART) for key in row.also)]
    if not told:
        return ""
    parts = [key.removeprefix(PART) for key in told[0].also if key.startswith(PART)]
    lines = [f"| % of the loop, by the clock | {' | '.join(parts)} |", f"|{'---|' * (len(parts) + 1)}"]
    for row in told:
        lines.append(f"| {row.contender} | {' | '.join(f'{row.also[PART + part]:.1f}' for part in parts)} |")
    return "\n".join(lines)
