"""The ledger of proofs in docs/proofs: what was proven where, for hardware that not every machine has.

One file for each kind of hardware, and in it, for each cell, the commit at which every claim of it held. It is checked
in because it is the only way in which a release says that a card was really there.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.ci.cells import SCHEMA, BadFile, Verdict
from tools.ci.checkout import Commit
from tools.ci.store import fingerprint

#: Below the root of the repository.
FOLDER = Path("docs/proofs")


@dataclass(frozen=True)
class Ledger:
    """One file."""

    path: Path
    hardware: dict[str, Any]
    cells: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """The hardware's."""
        return self.path.stem


def read_ledgers(folder: Path) -> list[Ledger]:
    """Every ledger of a folder, by name.

    Raises:
        BadFile: one cannot be read.
    """
    return [read_ledger(path) for path in sorted(folder.glob("*.json"))]


def read_ledger(path: Path) -> Ledger:
    """One ledger.

    Raises:
        BadFile: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ledger = Ledger(path, dict(content["hardware"]), dict(content["cells"]))
        lacking = [cell for cell, proof in ledger.cells.items() if not {"commit", "date", "claims"} <= set(proof)]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path}: is no ledger ({error!r}); expected what `history prove` writes") from error
    if content.get("schema") != SCHEMA:
        raise BadFile(f"{path}: schema is {content.get('schema')!r}; expected {SCHEMA}")
    if fingerprint(ledger.hardware) != ledger.name:
        raise BadFile(f"{path}: is about {fingerprint(ledger.hardware)}; expected its own name. hint: rename it")
    if lacking:
        raise BadFile(f"{path}: {lacking[0]} lacks a commit, a date or claims; expected what `history prove` writes")
    return ledger


def prove(folder: Path, judged: Sequence[tuple[Verdict, str]], commit: Commit) -> list[Path]:
    """Enters the proven among some verdicts into the ledgers of their hardware; returns the files that were written.

    Args:
        folder: of the ledgers.
        judged: each verdict with why it does not prove its cell of the matrix, empty if it does.
        commit: that was proven.

    Raises:
        BadFile: files differ from the commit, so what was proven is not what it holds; or nothing was proven.
    """
    if commit.changed:
        raise BadFile(f"files differ from {commit.id[:10]}; expected a clean checkout. hint: commit, test, prove again")
    proven = [verdict for verdict, problem in judged if not problem]
    if not proven:
        why = f" {judged[0][0].cell.key}: {judged[0][1]}." if judged else ""
        raise BadFile(f"none of {len(judged)} verdicts is proven; expected at least one.{why} hint: look at the report")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _enter(folder / f"{name}.json", [each for each in proven if fingerprint(each.hardware) == name], commit)
        for name in sorted({fingerprint(verdict.hardware) for verdict in proven})
    ]


def _enter(path: Path, proven: Iterable[Verdict], commit: Commit) -> Path:
    cells = dict(read_ledger(path).cells) if path.exists() else {}
    hardware: dict[str, Any] = {}
    for verdict in proven:
        hardware = verdict.hardware
        cells[verdict.cell.key] = {
            "commit": commit.id,
            "date": commit.date,
            "claims": [claim.name for claim in verdict.claims],
            "losses": [verdict.curve[0].loss, verdict.curve[-1].loss] if verdict.curve else [],
            "seconds": round(verdict.seconds, 1),
            "versions": verdict.versions,
            "replay": verdict.replay,
        }
    content = {"schema": SCHEMA, "hardware": hardware, "cells": dict(sorted(cells.items()))}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
