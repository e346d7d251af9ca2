"""The files of the smoke tier: the matrix (every cell, refused ones with their reason), and a verdict for each run.

Read here and nowhere else, field by field, because the report promises that nothing is green by accident: a file that
lacks something, a verdict without a claim, a claim that does not hold below a status that says proven: each is named.
"""

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1

#: The name of a verdict's file among a test's undeclared outputs, at any depth.
VERDICT_FILE = "verdict.json"

#: What Bazel packs a test's undeclared outputs into.
ARCHIVE = "outputs.zip"


class BadFile(ValueError):
    """A structured file does not hold what it should: where, got, expected."""


@dataclass(frozen=True)
class Refusal:
    """Why a combination is not trained, in the plan's own words."""

    field: str
    got: str
    expected: str
    hint: str


@dataclass(frozen=True)
class Cell:
    """One row of the matrix; what is not allowed has a refusal, what is has a target. Names are its variant's own."""

    name: str
    recipe: str
    variant: str
    framework: str
    cards: int
    features: tuple[str, ...]
    depth: str | None = None
    target: str | None = None
    refusal: Refusal | None = None
    claims: tuple[str, ...] = ()
    """Names of what its verdict must claim: a verdict's own list would be as good as it likes."""

    @property
    def key(self) -> str:
        """What it is called among all cells: cpu/sft_lora_fsdp_x2."""
        return f"{self.variant}/{self.name}"

    @property
    def accelerator(self) -> str:
        """What its target asks for, which ends the name of one that asks for more than a cpu."""
        return accelerator_of(self.target or self.name)


def accelerator_of(name: str) -> str:
    """The accelerator that a target or a cell asks for, by its name."""
    last = name.rpartition(".")[2]
    return last if last.startswith("gpu-") else "cpu"


@dataclass(frozen=True)
class Claim:
    """One checked statement."""

    name: str
    says: str
    holds: bool
    measured: Any
    bound: Any
    detail: str


@dataclass(frozen=True)
class Phase:
    """One part of a run, with what it took and may take."""

    name: str
    seconds: float
    seconds_max: float
    bytes_written: int


@dataclass(frozen=True)
class Point:
    """One step of a loss curve; what was not finite is no number here, in files it is null."""

    step: int
    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class Completion:
    """Something that a model under training drew, and what it was worth."""

    prompt: str
    """What it was asked; of several messages, a line for each."""
    completion: str
    rewards: dict[str, float]
    """By name, not weighted."""


@dataclass(frozen=True)
class Verdict:
    """All claims of one run of a cell, and what it measured."""

    cell: Cell
    target: str
    status: str
    claims: tuple[Claim, ...]
    phases: tuple[Phase, ...]
    curve: tuple[Point, ...]
    golden: tuple[Point, ...]
    tolerance: float
    """Relative difference that the golden curve allows."""
    seed: int
    replay: str
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    route: str = ""
    """Of a cell of the cpu that was sent to a simulated pool of cards: what that proves, and that is not the cell."""
    completions: tuple[Completion, ...] = ()
    """A few of what it learned from last, where it draws what it learns from."""

    def against(self, cell: Cell) -> str:
        """Why this verdict does not prove a cell of the matrix, or an empty string.

        One that asked for 4 cards and ran on 1 is about another cell, and one that leaves out a claim has not looked.
        """
        for name in ("recipe", "framework", "cards", "features"):
            wanted, got = getattr(cell, name), getattr(self.cell, name)
            if wanted != got:
                return f"the matrix says {name} {wanted!r}, its verdict {got!r}"
        if cell.target and self.target != cell.target:
            return f"the matrix says target {cell.target}, its verdict {self.target}"
        return self.problem or self._owed(cell.claims)

    def _owed(self, names: tuple[str, ...]) -> str:
        made = [claim.name for claim in self.claims]
        if not names:
            return "nothing says which claims it must make. hint: ./bazelw build //tests/smoke:matrix"
        if absent := [name for name in names if name not in made]:
            return f"it makes {len(set(names) & set(made))} of {len(names)} claims; without {', '.join(absent)}"
        if odd := [name for at, name in enumerate(made) if name not in names or name in made[:at]]:
            return f"it claims {odd[0]}, which the matrix does not ask for once"
        return ""

    @property
    def problem(self) -> str:
        """Why this verdict proves nothing, or an empty string. The status is believed only where the claims bear it."""
        if self.route:
            return self.route
        broken = [claim for claim in self.claims if not claim.holds]
        if broken:
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            return f"{broken[0].name}: {broken[0].detail or broken[0].says}{more}"
        if not self.claims:
            return "it makes no claim, which proves nothing"
        return "" if self.status == "proven" else f"its status is {self.status!r} although every claim holds"

    @property
    def seconds(self) -> float:
        """What all phases took together."""
        return sum(phase.seconds for phase in self.phases)


def read_matrix(path: Path) -> list[Cell]:
    """Every cell of the matrix file.

    Raises:
        BadFile: it cannot be read, or an entry lacks something.
    """
    record = _parsed(path.read_bytes(), str(path))
    cells = [_cell(entry, f"{path}: cells[{at}]") for at, entry in enumerate(_take(record, "cells", list, str(path)))]
    keys: set[str] = set()
    for cell in cells:
        if cell.key in keys:
            raise BadFile(f"{path}: two cells are named {cell.key}; expected one. hint: generate the matrix again")
        keys.add(cell.key)
        if bool(cell.target) == bool(cell.refusal):
            has = "both a target and a refusal" if cell.target else "neither a target nor a refusal"
            raise BadFile(f"{path}: {cell.key} has {has}; expected one of them")
    return cells


def verdicts_in(output: Path, file: str = VERDICT_FILE) -> Iterator[tuple[str, bytes]]:
    """Each verdict below a folder, or in an archive, of undeclared outputs: where it is, and its bytes.

    Args:
        output: the folder, archives below it included; the archive; or the one file.
        file: the name of the files that count.

    Raises:
        BadFile: the archive is damaged.
    """
    if output.is_dir():
        for path in sorted(output.rglob(file)):
            yield str(path), path.read_bytes()
        for path in sorted(output.rglob(ARCHIVE)):
            yield from verdicts_in(path, file)
    elif output.name == file:
        yield str(output), output.read_bytes()
    elif output.suffix == ".zip":
        try:
            with zipfile.ZipFile(output) as archive:
                for name in sorted(archive.namelist()):
                    if name.rpartition("/")[2] == file:
                        yield f"{output}!{name}", archive.read(name)
        except (zipfile.BadZipFile, OSError) as error:
            raise BadFile(
                f"{output}: cannot be unpacked ({error}); expected the undeclared outputs of a test"
            ) from error


def parse_verdict(raw: bytes | str, where: str) -> Verdict:
    """A verdict from its file's content.

    Raises:
        BadFile: something is missing or of another kind.
    """
    record = _parsed(raw, where)
    return Verdict(
        cell=_cell(_take(record, "cell", dict, where), f"{where}: cell"),
        target=_take(record, "target", str, where),
        status=_take(record, "status", str, where),
        claims=tuple(_claim(*each) for each in _entries(record, "claims", where)),
        phases=tuple(_phase(*each) for each in _entries(record, "phases", where)),
        curve=tuple(_point(*each) for each in _entries(record, "curve", where)),
        golden=tuple(_point(*each) for each in _entries(record, "golden", where)) if record.get("golden") else (),
        tolerance=_finite(record, "tolerance", where),
        seed=_take(record, "seed", int, where),
        replay=_take(record, "replay", str, where),
        versions=_take(record, "versions", dict, where),
        hardware=_take(record, "hardware", dict, where),
        route=str(record.get("route") or ""),
        completions=tuple(_completion(*each) for each in _entries(record, "completions", where, default=[])),
    )


def _parsed(raw: bytes | str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except ValueError as error:
        raise BadFile(f"{where}: is no JSON ({error}); expected an object") from error
    if not isinstance(record, dict):
        raise BadFile(f"{where}: is a {type(record).__name__}; expected an object")
    if record.get("schema") != SCHEMA:
        raise BadFile(f"{where}: schema is {record.get('schema')!r}; expected {SCHEMA}. hint: run its target again")
    return record


def _take(record: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = record.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        got = "is missing" if name not in record else f"is {value!r}"
        raise BadFile(f"{where}: {name} {got}; expected {words}")
    return value


def _entries(
    record: dict[str, Any], name: str, where: str, default: list[Any] | None = None
) -> list[tuple[dict[str, Any], str]]:
    entries = _take({name: default, **record} if default is not None else record, name, list, where)
    for at, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise BadFile(f"{where}: {name}[{at}] is {entry!r}; expected an object")
    return [(entry, f"{where}: {name}[{at}]") for at, entry in enumerate(entries)]


def _cell(entry: dict[str, Any], where: str) -> Cell:
    refusal = entry.get("refusal")
    return Cell(
        name=_take(entry, "name", str, where),
        recipe=_take(entry, "recipe", str, where),
        variant=_take(entry, "variant", str, where),
        framework=_take(entry, "framework", str, where),
        cards=_take(entry, "cards", int, where),
        features=tuple(_take(entry, "features", list, where)),
        depth=entry.get("depth"),
        target=entry.get("target"),
        refusal=_refusal(refusal, where) if refusal else None,
        claims=tuple(entry.get("claims") or ()),
    )


def _refusal(entry: dict[str, Any], where: str) -> Refusal:
    return Refusal(
        field=_take(entry, "field", str, where),
        got=_take(entry, "got", str, where),
        expected=_take(entry, "expected", str, where),
        hint=_take(entry, "hint", str, where),
    )


def _claim(entry: dict[str, Any], where: str) -> Claim:
    return Claim(
        name=_take(entry, "name", str, where),
        says=_take(entry, "says", str, where),
        holds=_take(entry, "holds", bool, where),
        measured=entry.get("measured"),
        bound=entry.get("bound"),
        detail=str(entry.get("detail") or ""),
    )


def _phase(entry: dict[str, Any], where: str) -> Phase:
    return Phase(
        name=_take(entry, "name", str, where),
        seconds=_finite(entry, "seconds", where),
        seconds_max=_finite(entry, "seconds_max", where),
        bytes_written=_take(entry, "bytes_written", int, where),
    )


def _point(entry: dict[str, Any], where: str) -> Point:
    return Point(
        step=_take(entry, "step", int, where),
        loss=_number(entry, "loss", where),
        gradient_norm=_number(entry, "gradient_norm", where),
    )


def _completion(entry: dict[str, Any], where: str) -> Completion:
    rewards = _take(entry, "rewards", dict, where)
    prompt = _take(entry, "prompt", (str, list), where)
    if isinstance(prompt, list):
        prompt = "\n".join(
            f"{_take(message, 'role', str, said)}: {message.get('content')}"
            for message, said in _entries(entry, "prompt", where)
        )
    return Completion(
        prompt=prompt,
        completion=_take(entry, "completion", str, where),
        rewards={str(name): _number(rewards, name, f"{where}: rewards") for name in rewards},
    )


def _finite(entry: dict[str, Any], name: str, where: str) -> float:
    number = float(_take(entry, name, (int, float), where))
    if not math.isfinite(number):
        raise BadFile(f"{where}: {name} is {number}; expected a finite number")
    return number


def _number(entry: dict[str, Any], name: str, where: str) -> float:
    if name in entry and entry[name] is None:
        return math.nan
    return float(_take(entry, name, (int, float), where))
