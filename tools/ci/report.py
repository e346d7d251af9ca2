"""The report of the last run: an HTML page, a JUnit file, a JSON file and a Markdown summary.

    ./bazelw test //... --config=ci
    ./bazelw run //tools/ci:report

Reads what the run left (build events and the files that they name) and runs nothing. The exit code is 0 only if nothing
failed and nothing is missing, the same as the count's (tools/ci/count.py).
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.ci.cells import BadFile
from tools.ci.checkout import commit_of
from tools.ci.drift import Past, by_cell, past_of
from tools.ci.formats import junit, markdown, record
from tools.ci.last_run import EVENTS, Run, read_run
from tools.ci.page import render
from tools.ci.proofs import FOLDER, Ledger, read_ledgers
from tools.ci.store import default_store, read_store, record_of
from tools.ci.views import headline

#: Below the workspace.
OUT = Path(".plumbline/report")


def main(arguments: list[str]) -> int:
    """Writes the report; 0 if the run was green."""
    workspace = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    parser = argparse.ArgumentParser(prog="report", description="Turns the last run into a page and files for CI.")
    parser.add_argument("--events", type=Path, default=EVENTS, help="what --build_event_json_file wrote")
    parser.add_argument("--matrix", type=Path, help="the matrix file; by default the one that the run built")
    parser.add_argument("--store", type=Path, help="the history; by default history.jsonl in bazelw's cache")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    parser.add_argument(
        "--expect", action="append", default=[], metavar="WORD", help="a tier or accelerator that must have run a test"
    )
    options = parser.parse_args(arguments)
    events, out = workspace / options.events, workspace / options.out
    if not events.exists():
        print(f"report: {events}: there is no run to report on. hint: ./bazelw test //... --config=ci", file=sys.stderr)
        return 2
    run = read_run(events, options.expect, workspace / options.matrix if options.matrix else None)
    known = known_of(workspace, workspace / options.store if options.store else default_store(os.environ), run)
    facts = known.facts
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("index.html", render(run, facts, known.past, known.ledgers)),
        ("junit.xml", junit(run)),
        ("report.json", json.dumps(record(run, facts), indent=1, allow_nan=False) + "\n"),
        ("summary.md", markdown(run, facts)),
    ):
        (out / name).write_text(text, encoding="utf-8")
    print(f"{headline(run)} {out / 'index.html'}")
    green = not run.failures and any(result.num_passed for result in run.results)
    return 0 if green else 1


@dataclass
class Known:
    """What is known beside the run itself."""

    facts: dict[str, str] = field(default_factory=dict)
    past: dict[str, Past] = field(default_factory=dict)
    ledgers: list[Ledger] = field(default_factory=list)


def known_of(workspace: Path, store: Path, run: Run) -> Known:
    """The commit, the history of the run's cells and the ledgers. What of it cannot be read is a fact of the page."""
    known = Known()
    commit = commit_of(workspace)
    if commit:
        known.facts = {"commit": f"{commit.name} {commit.subject}"}
    records, problems = read_store(store)
    histories = by_cell(records)
    name = commit.name if commit else "this run"
    for outcome in run.outcomes:
        if outcome.verdict:
            now = record_of(outcome.verdict, name, "", "" if outcome.state == "proven" else outcome.why)
            history = histories.get((now.cell, now.hardware), [])
            if history and now.digest not in {record.digest for record in history}:
                history = [*history, now]
            if past := past_of(history):
                known.past[outcome.cell.key] = past
    if problems:
        known.facts["history"] = problems[0]
    try:
        known.ledgers = read_ledgers(workspace / FOLDER)
    except BadFile as error:
        known.facts["proofs"] = str(error)
    return known


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
