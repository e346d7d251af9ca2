"""What a cell's run left behind, as claims read it: structured files, never what was printed.

    cell.json                 the cell's name
    sessions.json             of each session: exit code, memory, what it left, and the phases with their cost
    at_kill/                  metrics.jsonl and run.json as they were when the first session was killed
    out/                      the run itself: metrics.jsonl, run.json, summary.json, checkpoints/, completions.jsonl
    reload.json               how far the exports are from the trained weights
    hardware.json             the machine, and the versions of what took part

A file that is absent or broken raises here, and the claim that asked for it does not hold.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.smoke.goldens import Golden, golden_of
from tests.smoke.matrix import Cell, cell_named
from tests.smoke.verdict import Phase, Point
from training.metrics.records import Record, StepRecord, read_records

COMPLETIONS_SHOWN = 4


@dataclass(frozen=True)
class Evidence:
    """The files of one run of one cell."""

    folder: Path

    @cached_property
    def cell(self) -> Cell:
        """What was run."""
        return cell_named(self._json("cell.json")["name"])

    @cached_property
    def out(self) -> Path:
        """The run's own directory."""
        return self.folder / "out"

    @cached_property
    def records(self) -> list[Record]:
        """Every record of the whole run."""
        return list(read_records(self._there("out/metrics.jsonl")))

    @cached_property
    def records_at_kill(self) -> list[Record]:
        """Every record that had been written when the first session was killed."""
        return list(read_records(self._there("at_kill/metrics.jsonl")))

    @cached_property
    def run(self) -> dict[str, Any]:
        """run.json of the session that finished."""
        return self._json("out/run.json")

    @cached_property
    def run_at_kill(self) -> dict[str, Any]:
        """run.json of the session that was killed."""
        return self._json("at_kill/run.json")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return self._json("out/summary.json")

    @cached_property
    def sessions(self) -> list[dict[str, Any]]:
        """How each session went, in order."""
        found: list[dict[str, Any]] = self._json("sessions.json")["sessions"]
        return found

    @cached_property
    def phases(self) -> list[Phase]:
        """What each phase cost."""
        return [Phase(**each) for each in self._json("sessions.json")["phases"]]

    @cached_property
    def reload(self) -> dict[str, Any]:
        """How far exports are from the trained weights."""
        return self._json("reload.json")

    @cached_property
    def hardware(self) -> dict[str, Any]:
        """The machine."""
        found: dict[str, Any] = self._json("hardware.json")["hardware"]
        return found

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of what took part."""
        found: dict[str, str] = self._json("hardware.json")["versions"]
        return found

    @cached_property
    def steps(self) -> list[StepRecord]:
        """The records of steps."""
        return [each for each in self.records if isinstance(each, StepRecord)]

    @cached_property
    def completions(self) -> list[dict[str, Any]]:
        """Each completion that was drawn and judged."""
        lines = self._there("out/completions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @cached_property
    def completions_of_last(self) -> list[dict[str, Any]]:
        """A few of those that the last steps learned from, to be looked at."""
        last = max(each["step"] for each in self.completions)
        few = [each for each in self.completions if each["step"] == last][:COMPLETIONS_SHOWN]
        return [{name: each[name] for name in ("prompt", "completion", "rewards")} for each in few]

    @cached_property
    def curve(self) -> list[Point]:
        """The loss curve."""
        return [Point(each.step, each.loss, each.gradient_norm) for each in self.steps]

    @cached_property
    def golden(self) -> Golden | None:
        """The curve that it must follow."""
        return golden_of(self.cell)

    def _json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._there(name).read_text(encoding="utf-8"))
        return content

    def _there(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"the run left no {name}")
        return path
