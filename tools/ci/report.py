"""The report of the last run: an HTML page, a JUnit file, a JSON file and a Markdown summary.

    ./bazelw test //... --config=ci
    ./bazelw run //tools/ci:report

Reads what the run left (build events and the files that they name) and runs nothing. The exit code is 0 only if nothing
failed and nothing is missing, the same as the count's (tools/ci/count.py).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tools.ci.formats import junit, markdown, record
from tools.ci.last_run import read_run
from tools.ci.page import render
from tools.ci.views import headline

#: Where --config=ci lets Bazel write, below the workspace.
EVENTS = Path(".plumbline/events.json")
OUT = Path(".plumbline/report")


def main(arguments: list[str]) -> int:
    """Writes the report; 0 if the run was green."""
    workspace = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    parser = argparse.ArgumentParser(prog="report", description="Turns the last run into a page and files for CI.")
    parser.add_argument("--events", type=Path, default=EVENTS, help="what --build_event_json_file wrote")
    parser.add_argument("--matrix", type=Path, help="the matrix file; by default the one that the run built")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    parser.add_argument(
        "--expect", action="append", default=[], metavar="TIER", help="a tier that must have run a test"
    )
    options = parser.parse_args(arguments)
    events, out = workspace / options.events, workspace / options.out
    if not events.exists():
        print(f"report: {events}: there is no run to report on. hint: ./bazelw test //... --config=ci", file=sys.stderr)
        return 2
    run = read_run(events, options.expect, workspace / options.matrix if options.matrix else None)
    facts = commit_of(workspace)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("index.html", render(run, facts)),
        ("junit.xml", junit(run)),
        ("report.json", json.dumps(record(run, facts), indent=1, allow_nan=False) + "\n"),
        ("summary.md", markdown(run, facts)),
    ):
        (out / name).write_text(text, encoding="utf-8")
    print(f"{headline(run)} {out / 'index.html'}")
    green = not run.failures and any(result.num_passed for result in run.results)
    return 0 if green else 1


def commit_of(workspace: Path) -> dict[str, str]:
    """The commit of a checkout and its subject, and whether files differ from it; nothing where there is no git."""
    found = {}
    for name, command in (("commit", ("log", "-1", "--format=%H %s")), ("status", ("status", "--porcelain"))):
        try:
            done = subprocess.run(["git", "-C", str(workspace), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return {}
        found[name] = done.stdout.strip()
    commit, _, subject = found["commit"].partition(" ")
    return {"commit": commit[:12], "subject": subject, **({"files": "changed since"} if found["status"] else {})}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
