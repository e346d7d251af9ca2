"""The last run as data: results of targets, outcomes of smoke cells, and everything that keeps either from being green.

The count and the report are both made from this, so that they cannot disagree.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tools.ci.cells import BadFile, Cell, Verdict, parse_verdict, read_matrix, verdicts_in
from tools.ci.events import MANUAL, Build, Failure, Result, build_of, of_bazel, outputs_of, read_events, results_of

#: Where --config=ci lets Bazel write the events, below the workspace.
EVENTS = Path(".plumbline/events.json")

#: The target that writes every cell of the smoke tier, refused ones included.
MATRIX = "//tests/smoke:matrix"

#: How the labels of cells begin.
CELLS = "//tests/smoke:smoke."

#: What a target is guilty of that ran and proved nothing.
SILENT = "its target passed, and left no verdict"

#: What can be said of a cell, the worst first.
STATES = {
    "failed": "a claim does not hold, or its test never got to say so",
    "missing": "it should have been proven in this run, and there is no verdict",
    "unproven": "allowed, and this machine cannot run it",
    "left out": "allowed, and this run was not asked for it",
    "proven": "every claim of it holds",
    "refused": "not allowed: the plan says why, and that it does is tested",
}


@dataclass
class Outcome:
    """A cell and what this run says of it."""

    cell: Cell
    state: str
    why: str = ""
    verdict: Verdict | None = None
    result: Result | None = None

    @property
    def cached(self) -> bool:
        """True if an earlier run measured this, and nothing that it depends on has changed since."""
        return bool(self.verdict and self.result and self.result.cached)


@dataclass
class Run:
    """Everything that is known of a run."""

    build: Build
    results: list[Result]
    outcomes: list[Outcome] = field(default_factory=list)
    run_again: list[str] = field(default_factory=list)
    """Targets whose files are a later run's, which wrote no events: what is said of them is not of this run."""

    @property
    def failures(self) -> list[tuple[Result, Failure]]:
        """Every failure with the result that it belongs to."""
        return [(result, failure) for result in self.results for failure in result.failed]

    def in_state(self, *states: str) -> list[Outcome]:
        """The outcomes in some states."""
        return [outcome for outcome in self.outcomes if outcome.state in states]


def read_run(path: Path, expected: Iterable[str] = (), matrix: Path | None = None) -> Run:
    """The run whose event file this is; an expected word of which no case passed or failed is one failure more.

    Args:
        path: what --build_event_json_file wrote; a file that is not there is a failure like any other.
        expected: tiers and accelerators that must have run a test, or had a cached one. Bazel itself is green over
            nothing: it skips what is incompatible.
        matrix: the matrix file; by default the one that the run itself built.
    """
    try:
        events = read_events(path)
    except OSError as error:
        events = []
        results = [of_bazel(f"there is no event file: {error}")]
    else:
        results = results_of(events)
    build = build_of(events)
    run_again = [result.label for result in results if _is_newer(result.reports, path)]
    found = [matrix] if matrix else [each for each in outputs_of(events, MATRIX) if each.suffix == ".json"]
    outcomes = _outcomes(build, results, found)
    for word in expected:
        if not any(each.num_passed or each.failed for each in results if word in (each.tier, each.accelerator)):
            results.append(Result(word, failed=[Failure("expected, and no test of it ran", infrastructure=True)]))
    return Run(build, results, outcomes, run_again)


def _is_newer(files: Iterable[Path], events: Path) -> bool:
    """True if one of a test's files was written after the events that name it, of which a build's end is the last."""
    return any(file.stat().st_mtime > events.stat().st_mtime + 1 for file in files)


def _outcomes(build: Build, results: list[Result], matrix: list[Path]) -> list[Outcome]:
    """One outcome for each cell; what is wrong with the files themselves is added to the results."""
    by_label = {result.label: result for result in results}
    cells: list[Cell] = []
    try:
        if matrix:
            cells = read_matrix(matrix[0])
        elif any(label.startswith(CELLS) and not result.unproven for label, result in by_label.items()):
            _fail(
                results,
                by_label,
                MATRIX,
                f"no matrix file, so nothing can be said to be missing. hint: add {MATRIX} to what is tested",
            )
    except (OSError, BadFile) as error:
        _fail(results, by_label, MATRIX, str(error))
    verdicts: defaultdict[str, list[Verdict]] = defaultdict(list)
    known = {cell.key: cell for cell in cells}
    targets = {cell.target for cell in cells}
    for result in list(results):
        left = [each for each in _verdicts(result) if not each.route]
        for verdict in left:
            verdicts[verdict.cell.key].append(verdict)
            if not cells:
                known[verdict.cell.key] = verdict.cell
            elif verdict.cell.key not in known:
                result.failed.append(Failure(f"its verdict is about {verdict.cell.key}, which is not in the matrix"))
        ran = result.label.startswith(CELLS) and not (result.unproven or result.failed)
        if ran and not left and result.label not in targets:
            result.failed.append(Failure(f"missing: {SILENT}"))
    outcomes = [_outcome(cell, build, by_label, verdicts[key]) for key, cell in known.items()]
    for outcome in outcomes:
        _count(outcome, results, by_label)
    return outcomes


def _verdicts(result: Result) -> list[Verdict]:
    """The verdicts that one target left; a file that cannot be read is a failure of that target."""
    verdicts = []
    for output in result.outputs:
        try:
            verdicts += [parse_verdict(raw, where) for where, raw in verdicts_in(output)]
        except (OSError, BadFile) as error:
            result.failed.append(Failure(str(error), infrastructure=True))
    return verdicts


def _outcome(cell: Cell, build: Build, results: dict[str, Result], verdicts: list[Verdict]) -> Outcome:
    """What a run says of one cell. Proven is what is left when nothing speaks against it."""
    label = cell.target or (verdicts[0].target if verdicts else "")
    result = results.get(label)
    if cell.refusal:
        refusal = cell.refusal
        return Outcome(cell, "refused", f"{refusal.field}: {refusal.got}; expected {refusal.expected}", None, result)
    if verdicts:
        verdict = verdicts[-1]
        problem = "two verdicts are about it" if len(verdicts) > 1 else verdict.against(cell)
        if not problem and result and result.failed:
            problem = str(result.failed[0])
        return Outcome(cell, "failed" if problem else "proven", problem, verdict, result)
    if result and result.unproven:
        return Outcome(cell, "unproven", result.unproven, None, result)
    if result and result.failed:
        return Outcome(cell, "failed", str(result.failed[0]), None, result)
    if result:
        return Outcome(cell, "missing", SILENT, None, result)
    if build.asks_for(label, _tags(cell)):
        return Outcome(cell, "missing", "the run was asked for it, and never got to its target")
    return Outcome(cell, "left out", "the full depth has it" if cell.depth == "full" else "not asked for")


def _tags(cell: Cell) -> frozenset[str]:
    """The tags of a cell's target, as its macro gives them: what a filter of a lane goes by."""
    tags = {"smoke", cell.accelerator}
    if cell.depth != "blocking":
        tags.add(MANUAL)
    if cell.accelerator != "cpu" and cell.cards > 1:
        tags.add("multi-gpu")
    return frozenset(tags)


def _count(outcome: Outcome, results: list[Result], by_label: dict[str, Result]) -> None:
    """Makes a cell that is red a failure of its target, unless the target already is one."""
    if outcome.state not in ("failed", "missing"):
        return
    label = outcome.cell.target or (outcome.verdict.target if outcome.verdict else MATRIX)
    if outcome.state == "missing" or not by_label.get(label, Result(label)).failed:
        _fail(results, by_label, label, f"{outcome.state}: cell {outcome.cell.key}: {outcome.why}")


def _fail(results: list[Result], by_label: dict[str, Result], label: str, reason: str) -> None:
    if label not in by_label:
        by_label[label] = Result(label)
        results.append(by_label[label])
    by_label[label].failed.append(Failure(reason))
