"""The history of the smoke cells: what was measured at which commit, whether it drifted, and what is proven for good.

    ./bazelw run //tools/ci:history -- append       adds the last run's verdicts to the store
    ./bazelw run //tools/ci:history -- compare      says what drifted, and draws each cell over commits
    ./bazelw run //tools/ci:history -- prove        enters the proven cells into docs/proofs, one file for each hardware

Verdicts come from the last run's build events, or from a folder (`--verdicts`) where pytest alone left them: this needs
no more than a Python, so that it also runs where a card is and Bazel is not. Which claims each must make is then read
from a file (`--matrix`). `append --from` adds what other machines have appended to stores of their own.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.ci.cells import VERDICT_FILE, BadFile, Verdict, parse_verdict, read_matrix, verdicts_in
from tools.ci.checkout import commit_of
from tools.ci.drift import by_cell, drifts, over_commits
from tools.ci.last_run import EVENTS, read_run
from tools.ci.proofs import FOLDER, prove
from tools.ci.store import Record, append, default_store, read_store, record_of

OUT = Path(".plumbline/history")

#: Where Bazel leaves the matrix.
MATRIX = Path("bazel-bin/tests/smoke/matrix.json")


def main(arguments: list[str]) -> int:
    """Does one of the three; 0 if nothing is wrong, 1 if something drifted, 2 if it could not be done."""
    options = _options(arguments)
    workspace = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    store = workspace / options.store if options.store else default_store(os.environ)
    try:
        if options.do == "compare":
            return _compare(store, workspace / options.out, options.seconds_ratio)
        if options.do == "append" and options.others:
            return _append(store, _records_of(workspace / each for each in options.others))
        judged = _judged(workspace, options)
        if options.do == "append":
            commit = commit_of(workspace)
            at = (commit.name, commit.date) if commit else ("no commit", "")
            return _append(store, [record_of(verdict, *at, problem) for verdict, problem in judged])
        return _prove(judged, workspace)
    except (BadFile, OSError) as error:
        print(f"history: {error}", file=sys.stderr)
        return 2


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="history", description="Keeps and compares what smoke cells measured.")
    actions = parser.add_subparsers(dest="do", required=True)
    for name, says in (("append", "add the last run's verdicts"), ("prove", "enter proven cells into docs/proofs")):
        action = actions.add_parser(name, help=says)
        action.add_argument("--events", type=Path, default=EVENTS, help="what --build_event_json_file wrote")
        action.add_argument("--verdicts", type=Path, help="a folder with verdict files, instead of a run of Bazel")
        action.add_argument("--file", default=VERDICT_FILE, help="their name; benchmark.json for the benchmark's")
        action.add_argument("--matrix", type=Path, default=MATRIX, help="says which claims verdicts in a folder owe")
        action.add_argument("--store", type=Path, help="the history; by default history.jsonl in bazelw's cache")
    actions.choices["append"].add_argument(
        "--from", dest="others", type=Path, nargs="+", help="stores whose measurements are added, instead of a run's"
    )
    action = actions.add_parser("compare", help="say what drifted and draw each cell over commits")
    action.add_argument("--store", type=Path, help="the history; by default history.jsonl in bazelw's cache")
    action.add_argument("--out", type=Path, default=OUT, help="folder for the plots")
    action.add_argument("--seconds-ratio", type=float, default=1.5, help="times the usual that a phase may take")
    return parser.parse_args(arguments)


def _judged(workspace: Path, options: argparse.Namespace) -> list[tuple[Verdict, str]]:
    """The verdicts of a run of Bazel or below a folder, each with why it proves nothing.

    Raises:
        BadFile: there is none, or one cannot be read.
    """
    if options.verdicts:
        found = verdicts_in(workspace / options.verdicts, options.file)
        verdicts = [parse_verdict(raw, where) for where, raw in found]
        # Cells of another tier are in no matrix: what they owe is for their own test to say.
        of_matrix = options.file == VERDICT_FILE
        judged = (
            _by_matrix(verdicts, workspace / options.matrix)
            if of_matrix
            else [(verdict, verdict.problem) for verdict in verdicts]
        )
    else:
        run = read_run(workspace / options.events)
        judged = [
            (each.verdict, "" if each.state == "proven" else each.why or each.state)
            for each in run.outcomes
            if each.verdict
        ]
    if not judged:
        where = workspace / (options.verdicts or options.events)
        raise BadFile(f"{where}: there is no verdict. hint: ./bazelw test //tests/smoke/... --config=ci")
    return judged


def _by_matrix(verdicts: Sequence[Verdict], path: Path) -> list[tuple[Verdict, str]]:
    """Each verdict with why it does not prove its cell of the matrix."""
    if not verdicts:
        return []
    if not path.exists():
        raise BadFile(
            f"{path}: is not there, so nothing says which claims a verdict must make. hint: ./bazelw build "
            "//tests/smoke:matrix, or python -m tests.smoke.generate json > FILE and --matrix FILE"
        )
    cells = {cell.key: cell for cell in read_matrix(path)}
    return [
        (verdict, verdict.against(cells[verdict.cell.key]) if verdict.cell.key in cells else "it is not in the matrix")
        for verdict in verdicts
    ]


def _records_of(stores: Iterable[Path]) -> list[Record]:
    """What is in some stores.

    Raises:
        BadFile: one is not there or holds a line that is no record.
    """
    found = []
    for path in stores:
        if not path.exists():
            raise BadFile(f"{path}: is not there; expected a store that `history append` wrote")
        records, problems = read_store(path)
        if problems:
            raise BadFile("\n".join(problems))
        found += records
    return found


def _append(store: Path, records: Sequence[Record]) -> int:
    added = append(store, records)
    there = len(records) - added
    print(f"{added} measurements added to {store}; {there} were there already, as a cached result is no new one")
    return 0


def _compare(store: Path, out: Path, ratio: float) -> int:
    records, problems = read_store(store)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not records:
        raise BadFile(f"{store}: there is no history yet. hint: ./bazelw run //tools/ci:history -- append")
    out.mkdir(parents=True, exist_ok=True)
    histories = by_cell(records)
    for (cell, hardware), history in histories.items():
        (out / f"{cell.replace('/', '_')}_{hardware}.svg").write_text(over_commits(history), encoding="utf-8")
    found = drifts(records, ratio)
    for drift in found:
        print(drift)
    count = "nothing drifted" if not found else f"{len(found)} drifts"
    print(f"{len(records)} measurements of {len(histories)} cells, {count}; plots in {out}")
    return 1 if found or problems else 0


def _prove(judged: Sequence[tuple[Verdict, str]], workspace: Path) -> int:
    commit = commit_of(workspace, ignoring=(str(FOLDER),))
    if commit is None:
        raise BadFile(f"{workspace}: is no git checkout; expected one, since a proof is of a commit")
    for path in prove(workspace / FOLDER, judged, commit):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
