"""Where a quickstart writes, so that nothing that is there is ever lost: a free folder, or its own unfinished one.

`quickstart.json` in the folder says what runs there and how far it is. It is written first, and again when the length
of the run and the answers before training are known, so that the same command after Ctrl-C goes on and repeats nothing.
"""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from training.errors import ConfigError
from training.whole import write_whole

STATE = "quickstart.json"


@dataclass(frozen=True)
class State:
    """What runs in a folder, and how far it is."""

    task: str
    seed: int
    seconds: float
    num_steps: int | None = None
    """Derived once, from measured steps; the schedule depends on it, so a resumed run keeps it."""
    before: tuple[str, ...] | None = None
    """The answers before training."""
    drawn: tuple[str, ...] | None = None
    """The answers of the tuned model in the second act, before it is rewarded."""
    rewarded_steps: int | None = None
    """Steps of the second act, derived once like num_steps."""
    is_finished: bool = False

    def is_same_run(self, other: "State") -> bool:
        """True if both were asked for with the same words."""
        return (self.task, self.seed, self.seconds) == (other.task, other.seed, other.seconds)

    def write(self, folder: Path) -> None:
        """Writes the state in one piece."""
        write_whole(folder / STATE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    def describe(self) -> str:
        """The run in a few words."""
        return f"{'finished' if self.is_finished else 'unfinished'} {self.task}, seed {self.seed}, {self.seconds:g} s"


@dataclass(frozen=True)
class Place:
    """Where a run writes."""

    folder: Path
    state: State
    said: str
    """What is done with folders that were there, for people; empty if none was."""


def read_state(folder: Path) -> State | None:
    """The state of a folder; None if no quickstart, or one of another version, runs in it."""
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        for name in ("before", "drawn"):
            values[name] = None if values[name] is None else tuple(values[name])
        return State(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def find_place(wanted: Path, asked: State) -> Place:
    """The first of `wanted`, `wanted-2`, `wanted-3`, … that is free, or holds this very run, unfinished.

    Raises:
        ConfigError: the folder above cannot be looked into.
    """
    kept: list[str] = []
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            is_free = not folder.exists() or (folder.is_dir() and {each.name for each in folder.iterdir()} <= {".lock"})
        except OSError as error:
            raise ConfigError(
                "--out",
                got=f"{folder} cannot be read ({error.strerror})",
                expected="a folder, or a place to make one",
                hint="choose another with --out",
            ) from error
        state = None if is_free else read_state(folder)
        if is_free:
            said = f"{', '.join(kept)}: left as it is. This run goes to {folder.name}." if kept else ""
            return Place(folder, State(asked.task, asked.seed, asked.seconds), said)
        if state and not state.is_finished and state.is_same_run(asked):
            return Place(folder, state, f"{folder.name} holds this run, unfinished: going on where it stopped.")
        kept.append(f"{folder.name} ({state.describe() if state else 'something else'})")
    raise AssertionError("unreachable")
