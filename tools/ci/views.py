"""A run arranged for reading: the matrix as grids, refusals and unproven targets by reason, curves and times together.

What is the same for thousands of cells is said once. No markup here; templates/page.html has that.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from tools.ci.cells import Cell, Phase
from tools.ci.events import Failure, Result
from tools.ci.last_run import STATES, Outcome, Run
from tools.ci.plots import Plot, curves, distance

#: Seconds that two cores may be busy with the cells of the cpu that block a change, and a machine with its cards'.
SMOKE_SECONDS_MAX = {"cpu": 15 * 60.0, "gpu": 30 * 60.0}

#: Frameworks in the order in which they share more of a step; others follow by name.
FRAMEWORKS = ("single", "ddp", "fsdp", "deepspeed")


@dataclass(frozen=True)
class Tier:
    """Totals of one tier."""

    name: str
    num_targets: int
    num_cached: int
    num_passed: int
    num_failed: int
    num_skipped: int
    num_unproven: int
    seconds: float


@dataclass(frozen=True)
class Lane:
    """The smoke tests of one accelerator that block a change: how long a run was busy with them, and may be."""

    accelerator: str
    seconds: float
    seconds_max: float
    num_ran: int
    num_cached: int


@dataclass(frozen=True)
class Row:
    """The cells of a grid that learn the same way with the same features."""

    recipe: str
    features: tuple[str, ...]
    outcomes: list[Outcome | None]


@dataclass(frozen=True)
class Grid:
    """The cells of one variant that a run was about: rows are recipe and features, columns framework and cards."""

    variant: str
    columns: list[tuple[str, list[int]]]
    rows: list[Row]
    num_left_out: int
    num_refused: int

    @property
    def outcomes(self) -> list[Outcome]:
        """Its cells that are not refused."""
        return [each for row in self.rows for each in row.outcomes if each and each.state != "refused"]


@dataclass
class Reason:
    """What many cells or targets have in common: why they are refused, or why they could not run here."""

    says: str
    hint: str = ""
    cells: list[Cell] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    got: dict[str, int] = field(default_factory=dict)

    @property
    def always(self) -> list[str]:
        """What all of its cells share, which is usually what the reason is about."""
        first = self.cells[0]
        shared = [
            word
            for word, same in (
                (first.recipe, all(each.recipe == first.recipe for each in self.cells)),
                (first.variant, all(each.variant == first.variant for each in self.cells)),
                (first.framework, all(each.framework == first.framework for each in self.cells)),
                (f"×{first.cards}", all(each.cards == first.cards for each in self.cells)),
            )
            if same
        ]
        return shared + [name for name in first.features if all(name in each.features for each in self.cells)]


@dataclass(frozen=True)
class Panel:
    """The loss curves of the cells that differ in framework and cards alone, over their golden one."""

    recipe: str
    variant: str
    features: tuple[str, ...]
    outcomes: list[Outcome]
    plot: Plot
    worst: float | None
    tolerance: float


@dataclass(frozen=True)
class PhaseRow:
    """One phase in every cell that has it: which part of its budget each took."""

    name: str
    parts: list[tuple[Outcome, Phase, float]]

    @property
    def median_seconds(self) -> float:
        """What it usually takes."""
        return median(phase.seconds for _, phase, _ in self.parts)

    @property
    def worst(self) -> tuple[Outcome, Phase, float]:
        """The cell that took the largest part of its budget."""
        return max(self.parts, key=lambda part: part[2])


def tiers_of(run: Run) -> list[Tier]:
    """Totals of each tier, in the order of the results."""
    members: defaultdict[str, list[Result]] = defaultdict(list)
    for result in run.results:
        members[result.tier].append(result)
    return [
        Tier(
            name,
            num_targets=sum(each.label.startswith("//") for each in those),
            num_cached=sum(each.cached for each in those),
            num_passed=sum(each.num_passed for each in those),
            num_failed=sum(len(each.failed) for each in those),
            num_skipped=sum(each.num_skipped for each in those),
            num_unproven=sum(bool(each.unproven) for each in those),
            seconds=sum(each.seconds for each in those if not each.cached),
        )
        for name, those in members.items()
    ]


def lanes_of(run: Run) -> list[Lane]:
    """How long the smoke tests that block a change took, by accelerator, where any of them ran or was cached."""
    deep = {each.cell.target for each in run.outcomes if each.cell.depth == "full"}
    lanes: defaultdict[str, list[Result]] = defaultdict(list)
    for result in run.results:
        if result.tier == "smoke" and result.label not in deep and (result.ran or result.cached):
            lanes[result.accelerator].append(result)
    shares = _shares(run.results)
    return [
        Lane(
            name,
            sum(shares.get(each.label, 0.0) for each in those),
            SMOKE_SECONDS_MAX.get(name, SMOKE_SECONDS_MAX["gpu"]),
            num_ran=sum(not each.cached for each in those),
            num_cached=sum(each.cached for each in those),
        )
        for name, those in lanes.items()
    ]


def _shares(results: Sequence[Result]) -> dict[str, float]:
    """The seconds of a run that each target answers for; where several ran at a time, they share them.

    So the parts add up to the whole, and a tier by itself has what a clock on the wall says of it.
    """
    marks = sorted(
        [(began, 1, result.label) for result in results for began, _ in result.ran]
        + [(ended, -1, result.label) for result in results for _, ended in result.ran]
    )
    shares: defaultdict[str, float] = defaultdict(float)
    running: Counter[str] = Counter()
    last = 0.0
    for moment, change, label in marks:
        num_running = running.total()
        for name, number in running.items() if num_running else ():
            shares[name] += (moment - last) * number / num_running
        running[label] += change
        if not running[label]:
            del running[label]
        last = moment
    return shares


def states_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many cells are in each state, the worst state first; what is cached is counted apart from proven."""
    counts = dict.fromkeys(("failed", "missing", "proven", "cached", "unproven", "left out", "refused"), 0)
    for outcome in outcomes:
        counts["cached" if outcome.state == "proven" and outcome.cached else outcome.state] += 1
    return counts


def grids_of(run: Run) -> list[Grid]:
    """One grid for each variant, those first in which something was proven or failed."""
    by_variant: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in run.outcomes:
        by_variant[outcome.cell.variant].append(outcome)
    grids = [_grid(variant, outcomes) for variant, outcomes in by_variant.items()]
    return sorted(grids, key=lambda grid: min((list(STATES).index(each.state) for each in grid.outcomes), default=99))


def _grid(variant: str, outcomes: list[Outcome]) -> Grid:
    """The sets of features in which this run had something to prove, by recipe, the small ones first."""
    shown = {_learns(each) for each in outcomes if each.state not in ("refused", "left out")}
    shown |= {_learns(each) for each in outcomes if each.cell.depth == "blocking"}
    recipes = list(dict.fromkeys(each.cell.recipe for each in outcomes))
    frameworks = sorted({each.cell.framework for each in outcomes}, key=_place)
    columns = [
        (framework, sorted({each.cell.cards for each in outcomes if each.cell.framework == framework}))
        for framework in frameworks
    ]
    at = {(*_learns(each), each.cell.framework, each.cell.cards): each for each in outcomes}
    rows = [
        Row(
            recipe,
            features,
            [at.get((recipe, features, framework, cards)) for framework, those in columns for cards in those],
        )
        for recipe, features in sorted(shown, key=lambda each: (recipes.index(each[0]), len(each[1]), each[1]))
    ]
    hidden = [each.state for each in outcomes if _learns(each) not in shown]
    return Grid(variant, columns, rows, hidden.count("left out"), hidden.count("refused"))


def _learns(outcome: Outcome) -> tuple[str, tuple[str, ...]]:
    """What a row of a grid is about."""
    return outcome.cell.recipe, outcome.cell.features


def _place(framework: str) -> tuple[int, str]:
    return (FRAMEWORKS.index(framework) if framework in FRAMEWORKS else len(FRAMEWORKS), framework)


def refusals_of(run: Run) -> list[Reason]:
    """The refused cells by what the plan wants instead, the largest group first."""
    groups: dict[tuple[str, str, str], Reason] = {}
    for outcome in run.in_state("refused"):
        refusal = outcome.cell.refusal
        if refusal:
            says = f"{refusal.field}: expected {refusal.expected}"
            reason = groups.setdefault((refusal.field, refusal.expected, refusal.hint), Reason(says, refusal.hint))
            reason.cells.append(outcome.cell)
            reason.got[refusal.got] = reason.got.get(refusal.got, 0) + 1
    return sorted(groups.values(), key=lambda reason: -len(reason.cells))


def unproven_of(run: Run) -> list[Reason]:
    """The targets that this machine cannot run, by reason, the largest group first."""
    groups: dict[str, Reason] = {}
    for result in run.results:
        if result.unproven:
            groups.setdefault(result.unproven, Reason(result.unproven)).targets.append(result.label)
    return sorted(groups.values(), key=lambda reason: -len(reason.targets))


def panels_of(run: Run) -> list[Panel]:
    """The curves of every cell that has one, together where framework and cards alone differ."""
    together: defaultdict[tuple[str, str, tuple[str, ...]], list[Outcome]] = defaultdict(list)
    for outcome in run.outcomes:
        if outcome.verdict and outcome.verdict.curve:
            cell = outcome.cell
            together[cell.recipe, cell.variant, cell.features].append(outcome)
    panels = []
    for (recipe, variant, features), outcomes in together.items():
        verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict]
        golden = next((verdict.golden for verdict in verdicts if verdict.golden), ())
        name = " + ".join(features) or "no feature"
        plot = curves([verdict.curve for verdict in verdicts], golden, f"Loss of {recipe}, {name}, on {variant}")
        if plot:
            far = [found for verdict in verdicts if (found := distance(verdict.curve, verdict.golden))]
            worst = max((found[0] for found in far), default=None)
            panels.append(Panel(recipe, variant, features, outcomes, plot, worst, verdicts[0].tolerance))
    recipes = list(dict.fromkeys(outcome.cell.recipe for outcome in run.outcomes))
    return sorted(
        panels,
        key=lambda panel: (not _red(panel), panel.variant, recipes.index(panel.recipe), len(panel.features)),
    )


def _red(panel: Panel) -> bool:
    return any(outcome.state == "failed" for outcome in panel.outcomes)


def phases_of(run: Run) -> list[PhaseRow]:
    """Every phase of the cells' runs, in the order in which they happen."""
    rows: dict[str, PhaseRow] = {}
    for outcome in run.outcomes:
        for phase in outcome.verdict.phases if outcome.verdict else ():
            part = phase.seconds / phase.seconds_max if phase.seconds_max else math.inf
            rows.setdefault(phase.name, PhaseRow(phase.name, [])).parts.append((outcome, phase, part))
    return list(rows.values())


def slowest_of(run: Run, most: int = 12) -> list[Result]:
    """The targets that took longest, measured in this run or in the one that the cache answers for."""
    return sorted((each for each in run.results if each.seconds > 0), key=lambda each: -each.seconds)[:most]


def failures_of(run: Run, *, infrastructure: bool) -> list[tuple[Result, Failure]]:
    """The failures of one kind: what tests said, or what kept them from saying anything."""
    return [(result, failure) for result, failure in run.failures if failure.infrastructure == infrastructure]


def headline(run: Run) -> str:
    """The sentence that says how it went."""
    num_missing = len(run.in_state("missing"))
    infrastructure = len(failures_of(run, infrastructure=True))
    num_failed = len(run.failures) - infrastructure - num_missing
    parts = [
        f"{_plural(count, noun)} {ending}"
        for count, noun, ending in (
            (num_failed, "test", "failed"),
            (num_missing, "cell", "is missing" if num_missing == 1 else "are missing"),
            (infrastructure, "target", "never got to a verdict"),
        )
        if count
    ]
    if parts:
        return f"{_listed(parts)}."
    return "Nothing failed." if sum(each.num_passed for each in run.results) else "No test ran."


def summary(run: Run) -> str:
    """What was proven, in a sentence or three."""
    targets = [each for each in run.results if each.label.startswith("//") and not each.unproven]
    cached = sum(each.cached for each in targets)
    passed = sum(each.num_passed for each in run.results)
    said = [f"{_plural(passed, 'test case')} passed in {_plural(len(targets), 'target')}"]
    said[0] += f", {cached:,} of them answered from the cache." if cached else "."
    states = states_of(run.outcomes)
    if run.outcomes:
        expected = sum(states[each] for each in ("failed", "missing", "proven", "cached"))
        proven = states["proven"] + states["cached"]
        said.append(f"{proven:,} of {_plural(expected, 'smoke cell')} that this machine can run {_is(proven)} proven.")
    unproven = sum(bool(each.unproven) for each in run.results)
    if unproven:
        said.append(f"{_plural(unproven, 'target')} cannot be proven here, each with its reason below.")
    return " ".join(said)


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 2 else parts)
