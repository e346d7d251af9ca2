"""The run as one HTML page that needs nothing else: no network, no other file, and no script to be read.

Links and <details> do all the work; the script only opens what they lead to. What comes from a run is escaped, and a
policy in the page keeps it from loading anything.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from tools.ci import views
from tools.ci.drift import Past
from tools.ci.last_run import STATES, Outcome, Run
from tools.ci.plots import Plot, curves, distance
from tools.ci.proofs import Ledger

TEMPLATES = Path(__file__).parent / "templates"

#: How much of a log or a trace is shown: its end, where the reason is. Of what is green, enough to see that it ran.
TAIL_LINES, TAIL_CHARACTERS = 200, 16_000
GREEN_LINES, GREEN_CHARACTERS = 12, 1_200

#: All logs of a page together, those of what is red first: a page is to be opened, on a phone too.
LOGS_CHARACTERS = 2_000_000

#: How many completions of a cell are shown, and how much of each text.
COMPLETIONS_MAX, COMPLETION_CHARACTERS = 4, 600

#: Colours, cursor movements and the like, which a terminal would take for itself and a page may not hold.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")

MEANINGS = {
    **STATES,
    "cached": "proven earlier, and nothing that it depends on has changed since",
    "proven elsewhere": "of the unproven, those that docs/proofs has a proof of",
}


def render(
    run: Run, facts: Mapping[str, str], past: Mapping[str, Past] | None = None, ledgers: Sequence[Ledger] = ()
) -> str:
    """The page.

    Args:
        run: what happened.
        facts: what else the head of the page says of the run, such as the commit.
        past: for each cell's key, its plot over commits, where there is a history.
        ledgers: what was proven on other hardware, for the cells that this machine cannot run.
    """
    refusals, unproven = views.refusals_of(run), views.unproven_of(run)
    elsewhere = {cell: ledger for ledger in ledgers for cell in ledger.cells}
    anchors = _anchors(run, refusals, unproven)
    environment = _environment(anchors, past or {}, elsewhere)
    infrastructure = views.failures_of(run, infrastructure=True)
    missing = run.in_state("missing")
    failures = [
        each for each in views.failures_of(run, infrastructure=False) if not each[1].reason.startswith("missing: ")
    ]
    cached = [result for result in run.results if result.cached]
    states = views.states_of(run.outcomes) if run.outcomes else {}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    panels, grids = _panels(run), _grids(run)
    phases, slowest = _phases(run), views.slowest_of(run)
    shown = [outcome for outcome in run.outcomes if anchors.get(id(outcome), "").startswith("cell-")]
    sections = [
        ("picture", "Picture", True),
        ("failures", "Failures", bool(failures or missing or infrastructure)),
        ("matrix", "Matrix", bool(grids)),
        ("curves", "Curves", bool(panels)),
        ("times", "Times", bool(phases or slowest)),
        ("trust", "Trust", True),
        ("cells", "Cells", bool(shown)),
    ]
    return environment.get_template("page.html").render(
        headline=views.headline(run),
        summary=views.summary(run),
        red=bool(run.failures) or not any(result.num_passed for result in run.results),
        facts=_facts(run, facts).items(),
        sections=[(anchor, name) for anchor, name, there in sections if there],
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        meanings=MEANINGS,
        cell_states=states,
        about={name: count for name, count in states.items() if name not in ("left out", "refused")},
        tiers=[_tier(tier) for tier in views.tiers_of(run)],
        lanes=views.lanes_of(run),
        failures=failures,
        missing=missing,
        infrastructure=infrastructure,
        grids=grids,
        panels=panels,
        distances=_distances(run),
        several_variants=len({panel["variant"] for panel in panels}) > 1,
        allowed=f"{100 * _along(1.0):.1f}",
        phases=phases,
        slowest=slowest,
        flaky=[result for result in run.results if result.flaky],
        cached=cached,
        cached_seconds=sum(result.seconds for result in cached),
        unproven=unproven,
        ledgers=ledgers,
        num_elsewhere=sum(kind(outcome, elsewhere) == "proven elsewhere" for outcome in run.outcomes),
        refusals=refusals,
        shown=sorted(shown, key=lambda outcome: list(STATES).index(outcome.state)),
    )


def kind(outcome: Outcome, elsewhere: Mapping[str, Ledger]) -> str:
    """The state of a cell in the word that the page uses: what is cached, or proven elsewhere, is a kind of its own."""
    if outcome.state == "proven" and outcome.cached:
        return "cached"
    if outcome.state == "unproven" and outcome.cell.key in elsewhere:
        return "proven elsewhere"
    return outcome.state


def took(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h {minutes % 60}m" if minutes >= 60 else f"{minutes}m {rest:02}s"


def num_bytes(number: float) -> str:
    """A size in the largest unit that leaves at least one."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("a unit was found")


def figure(number: float) -> str:
    """A small number, short."""
    if not math.isfinite(number):
        return "not a number" if math.isnan(number) else "infinite"
    return _plain_exponent(f"{number:.2g}")


def _plain_exponent(text: str) -> str:
    """A number without the sign and the zeros that nobody says: 2e-6, 1e10."""
    return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].replace("+", ""), text)


def value(thing: Any) -> str:
    """What a claim measured, whatever it was, without the signs of JSON."""
    if isinstance(thing, float):
        return _plain_exponent(f"{thing:.6g}")
    if isinstance(thing, dict):
        parts = [
            f"{name} ({value(part)})" if isinstance(part, dict) else f"{name} {value(part)}"
            for name, part in thing.items()
        ]
        return "; ".join(parts) or "nothing"
    if isinstance(thing, list):
        return (
            ", ".join(f"({value(part)})" if isinstance(part, dict | list) else value(part) for part in thing) or "none"
        )
    return thing if isinstance(thing, str) else json.dumps(thing)


def plain(thing: Any) -> Any:
    """What a run said, as far as a page can show it. Markup is our own and stays as it is."""
    return CONTROL.sub("", thing) if isinstance(thing, str) and not isinstance(thing, Markup) else thing


def tail(text: str, num_lines: int = TAIL_LINES, num_characters: int = TAIL_CHARACTERS) -> str:
    """The end of a text, where a failure has its reason, and how much was left out."""
    lines = plain(text).splitlines()
    kept = "\n".join(lines[-num_lines:])[-num_characters:]
    left_out = len(lines) - kept.count("\n") - 1
    return f"… {left_out} lines before\n{kept}" if left_out > 0 else kept


def shortened(text: str) -> str:
    """The beginning of a text that a model was given or drew."""
    return text if len(text) <= COMPLETION_CHARACTERS else f"{text[:COMPLETION_CHARACTERS]} …"


class Logs:
    """Ends of log files, as many as a page has room for."""

    def __init__(self) -> None:
        """Begins with all of it."""
        self._room = LOGS_CHARACTERS

    def __call__(self, path: Path, green: bool = False) -> str:
        """The end of a log file, and that of what is green a short one."""
        if self._room <= 0:
            return "It is left out: the page has no room for more logs."
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"It cannot be read: {error}"
        kept = tail(text, GREEN_LINES, GREEN_CHARACTERS) if green else tail(text)
        self._room -= len(kept)
        return kept


def wbr(text: str) -> Markup:
    """A long name that may break after its underscores, slashes and colons."""
    return Markup(re.sub(r"([_/:.])(?=\w)", r"\1<wbr>", str(escape(text))))


def features(names: Sequence[str]) -> Markup:
    """A set of features as words."""
    return Markup(" + ").join(wbr(name) for name in names) if names else Markup("no feature")


def _environment(
    anchors: Mapping[int, str], past: Mapping[str, Past], elsewhere: Mapping[str, Ledger]
) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "anchor": lambda outcome: anchors.get(id(outcome), ""),
        "bytes": num_bytes,
        "curve": lambda outcome: _curve(outcome, past.get(outcome.cell.key)),
        "completions": lambda verdict: verdict.completions[:COMPLETIONS_MAX],
        "distance": lambda verdict: distance(verdict.curve, verdict.golden),
        "features": features,
        "figure": figure,
        "history": lambda outcome: past.get(outcome.cell.key),
        "kind": lambda outcome: kind(outcome, elsewhere),
        "proof": lambda outcome: _proof(outcome, elsewhere),
        "label": wbr,
        "log": Logs(),
        "shortened": shortened,
        "tail": tail,
        "took": took,
        "value": value,
        "wbr": wbr,
    }
    environment.filters.update(filters)
    return environment


def _proof(outcome: Outcome, elsewhere: Mapping[str, Ledger]) -> str:
    """Where and when an unproven cell was proven, if docs/proofs says so."""
    ledger = elsewhere.get(outcome.cell.key)
    if outcome.state != "unproven" or not ledger:
        return ""
    proof = ledger.cells[outcome.cell.key]
    return f"proven on {ledger.name} at {proof['commit'][:10]}, {proof['date']}"


def _anchors(run: Run, refusals: list[views.Reason], unproven: list[views.Reason]) -> dict[int, str]:
    """Where the page says more of an outcome: its own details, or the reason that it shares with others."""
    refused = {cell.key: at for at, reason in enumerate(refusals, start=1) for cell in reason.cells}
    skipped = {label: at for at, reason in enumerate(unproven, start=1) for label in reason.targets}
    anchors = {}
    for outcome in run.outcomes:
        if outcome.state == "refused":
            anchors[id(outcome)] = f"refused-{refused[outcome.cell.key]}"
        elif outcome.state == "unproven":
            anchors[id(outcome)] = f"unproven-{skipped[outcome.cell.target or '']}"
        elif outcome.state != "left out":
            anchors[id(outcome)] = f"cell-{outcome.cell.key.replace('/', '-')}"
    return anchors


def _facts(run: Run, more: Mapping[str, str]) -> dict[str, str]:
    build = run.build
    began = (
        datetime.fromtimestamp(build.started_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC") if build.started_ms else ""
    )
    told = {"began": began, "took": took(build.seconds) if build.seconds else "", "command": build.command}
    ended = {"Bazel said": build.ending.replace("_", " ").lower()}
    if run.run_again:
        ended["not of this run"] = (
            f"the files of {', '.join(run.run_again[:3])}{' …' if len(run.run_again) > 3 else ''}"
        )
    return {name: text for name, text in {**more, **told, **ended}.items() if text}


def _tier(tier: views.Tier) -> dict[str, Any]:
    ran = tier.num_targets - tier.num_unproven - tier.num_cached
    parts = {
        "failed": tier.num_failed,
        "proven": max(ran - tier.num_failed, 0),
        "cached": tier.num_cached,
        "unproven": tier.num_unproven,
    }
    return {**vars(tier), "parts": parts}


def _grids(run: Run) -> list[dict[str, Any]]:
    grids = []
    for grid in views.grids_of(run):
        firsts, at = set(), 0
        for _, cards in grid.columns:
            firsts.add(at)
            at += len(cards)
        measured = any(each.state in ("proven", "failed", "missing") for each in grid.outcomes)
        about = {"firsts": firsts, "width": at, "measured": measured, "states": views.states_of(grid.outcomes)}
        grids.append({**vars(grid), **about})
    return grids


def _panels(run: Run) -> list[dict[str, Any]]:
    return [
        {**vars(panel), "red": any(outcome.state == "failed" for outcome in panel.outcomes)}
        for panel in views.panels_of(run)
    ]


def _distances(run: Run) -> list[dict[str, Any]]:
    """Each cell's distance from its golden curve on a logarithmic track, up to ten times what is allowed."""
    rows = []
    for panel in views.panels_of(run):
        dots, worst = [], None
        for outcome in panel.outcomes:
            verdict = outcome.verdict
            found = distance(verdict.curve, verdict.golden) if verdict else None
            if verdict and found and verdict.tolerance:
                share = found[0] / verdict.tolerance
                dots.append((f"{100 * _along(share):.1f}", share > 1))
                worst = max(worst or (0.0, outcome), (share, outcome), key=lambda each: each[0])
        if worst:
            rows.append({"panel": panel, "dots": dots, "share": worst[0], "outcome": worst[1], "far": panel.worst})
    return rows


def _along(share: float) -> float:
    """Where a share of what is allowed stands between a ten-thousandth of it and ten times it."""
    return min(max((math.log10(max(share, 1e-4)) + 4) / 5, 0.0), 1.0)


def _phases(run: Run) -> list[dict[str, Any]]:
    rows = []
    for row in views.phases_of(run):
        outcome, phase, part = row.worst
        scale = max(1.0, *(share for _, _, share in row.parts if math.isfinite(share))) * 1.02
        dots = [(f"{100 * min(share / scale, 1):.1f}", share > 1) for _, _, share in row.parts]
        rows.append(
            {
                "name": row.name,
                "dots": dots,
                "limit": f"{100 / scale:.1f}",
                "median": row.median_seconds,
                "worst_outcome": outcome,
                "worst_part": part,
                "worst_seconds": phase.seconds,
                "worst_budget": phase.seconds_max,
            }
        )
    return rows


def _curve(outcome: Outcome, past: Past | None) -> Plot | None:
    verdict = outcome.verdict
    if not verdict:
        return None
    return curves([verdict.curve], verdict.golden, f"Loss of {verdict.cell.name}", past.curves if past else ())
