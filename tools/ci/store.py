"""The history of the smoke cells: one line of JSON for each measured run of a cell, in a file that stays small.

A line is a measurement and not a run of Bazel: what the cache answers for was measured before and is not stored again.
The file is replaced as a whole, so that a reader or a crash never meets half of it, and a line that cannot be read
stops whoever would write it anew, because that would drop it without a word.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.ci.cells import SCHEMA, BadFile, Point, Verdict

#: Measurements of one cell on one kind of hardware that are kept, the newest.
RECORDS_MAX = 100

#: The whole file; the oldest lines make room.
BYTES_MAX = 32 * 2**20

#: What makes two machines the same for a comparison of times. A kernel or a driver is not among it.
HARDWARE = ("machine", "processor", "cores", "accelerators")

#: Digits that are kept of a loss: one more than single precision has.
DIGITS = 9


@dataclass(frozen=True)
class Spent:
    """What one phase took."""

    name: str
    seconds: float
    bytes_written: int | None = None
    """None where it was measured before bytes were kept."""


@dataclass(frozen=True)
class Record:
    """One measured run of a cell."""

    cell: str
    recipe: str
    features: tuple[str, ...]
    commit: str
    date: str
    hardware: str
    proven: bool
    tolerance: float
    curve: tuple[Point, ...]
    phases: tuple[Spent, ...]
    digest: str

    @property
    def seconds(self) -> float:
        """What all phases took together."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def bytes_written(self) -> int | None:
        """What all phases wrote together, if that was kept of each."""
        written = [phase.bytes_written for phase in self.phases]
        return sum(each for each in written if each is not None) if written and None not in written else None


def default_store(environment: Mapping[str, str]) -> Path:
    """Where the history is kept unless a path is given: beside what bazelw keeps for this user."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "."), ".cache"), "plumbline")
    return Path(environment.get("PLUMBLINE_CACHE") or cache, "history.jsonl")


def fingerprint(hardware: Mapping[str, Any]) -> str:
    """A name for a kind of machine, the same for machines on which times can be compared: 2x-example-9000-1a2b3c."""
    about = {name: hardware[name] for name in HARDWARE if hardware.get(name)} or dict(hardware)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:6]
    accelerators = about.get("accelerators")
    if isinstance(accelerators, list) and accelerators:
        first = accelerators[0]
        count, name = len(accelerators), first.get("name", "accelerator") if isinstance(first, dict) else first
    else:
        count, name = about.get("cores", 1), about.get("processor") or about.get("machine") or "machine"
    words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((?:R|TM)\)", "", str(name)).lower()).strip("-")
    return f"{count}x-{words[:40].rstrip('-')}-{digest}"


def record_of(verdict: Verdict, commit: str, date: str, problem: str) -> Record:
    """A verdict as it is kept. Its digest is of what was measured, so that the same measurement is known again.

    Args:
        verdict: what was measured.
        commit: at which.
        date: of the commit.
        problem: why it proves nothing; empty if it is a measure for what comes later.
    """
    measured = [[asdict(point) for point in verdict.curve], [asdict(phase) for phase in verdict.phases]]
    text = json.dumps([verdict.cell.key, measured, verdict.hardware, verdict.versions, verdict.seed], sort_keys=True)
    return Record(
        cell=verdict.cell.key,
        recipe=verdict.cell.recipe,
        features=verdict.cell.features,
        commit=commit,
        date=date,
        hardware=fingerprint(verdict.hardware),
        proven=not problem,
        tolerance=verdict.tolerance,
        curve=verdict.curve,
        phases=tuple(Spent(phase.name, phase.seconds, phase.bytes_written) for phase in verdict.phases),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


def read_store(path: Path) -> tuple[list[Record], list[str]]:
    """The records of a file, the oldest first, and what is wrong with its other lines, as file:line: problem."""
    records: list[Record] = []
    problems: list[str] = []
    if not path.exists():
        return records, problems
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            records.append(_parsed(line))
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"{path}:{number}: is no record ({error!r}); expected what `history append` writes")
    return records, problems


def append(path: Path, fresh: Iterable[Record]) -> int:
    """Adds the measurements that are not there yet; returns how many that were.

    Raises:
        BadFile: the file holds lines that would be lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        records, problems = read_store(path)
        if problems:
            raise BadFile("\n".join([*problems, f"hint: repair or delete these lines of {path}, then append again"]))
        known = {(record.cell, record.digest) for record in records}
        once = {(record.cell, record.digest): record for record in fresh}
        added = [record for key, record in once.items() if key not in known]
        if added:
            _replace(path, "".join(_bounded([*records, *added])))
    return len(added)


def _bounded(records: Sequence[Record]) -> list[str]:
    """The lines that are kept, in order."""
    seen: Counter[tuple[str, str]] = Counter()
    kept: list[str] = []
    room = BYTES_MAX
    for record in reversed(records):
        seen[record.cell, record.hardware] += 1
        line = _line(record)
        room -= len(line.encode())
        if room < 0:
            break
        if seen[record.cell, record.hardware] <= RECORDS_MAX:
            kept.append(line)
        else:
            room += len(line.encode())
    return kept[::-1]


def _line(record: Record) -> str:
    entry = asdict(record)
    entry["curve"] = [[point.step, _short(point.loss), _short(point.gradient_norm)] for point in record.curve]
    entry["phases"] = [[phase.name, phase.seconds, phase.bytes_written] for phase in record.phases]
    return json.dumps({"schema": SCHEMA, **entry}, allow_nan=False, separators=(",", ":")) + "\n"


def _short(number: float) -> float | None:
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def _parsed(line: str) -> Record:
    entry = json.loads(line)
    if entry.pop("schema") != SCHEMA:
        raise ValueError(f"schema is not {SCHEMA}")
    entry["features"] = tuple(entry["features"])
    entry["curve"] = tuple(
        Point(int(step), *(math.nan if number is None else float(number) for number in (loss, norm)))
        for step, loss, norm in entry["curve"]
    )
    entry["phases"] = tuple(Spent(str(name), float(seconds), *written) for name, seconds, *written in entry["phases"])
    return Record(**entry)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps two writers of one file from dropping what the other has added."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    """Puts a whole new file in the place of the old one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8") as fresh:
        try:
            fresh.write(text)
            fresh.flush()
            os.fsync(fresh.fileno())
            os.replace(fresh.name, path)
        except BaseException:
            os.unlink(fresh.name)
            raise
