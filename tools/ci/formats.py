"""A run for other programs: one JUnit file, one JSON file, and a summary in Markdown for a pull request.

What the page shows as red is red here too: a missing cell is a failed case, and what this machine cannot run is a
skipped one with its reason, since JUnit has no other word for it.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from tools.ci import views
from tools.ci.cells import Verdict
from tools.ci.events import Result
from tools.ci.last_run import Outcome, Run

#: Of the comments and summaries that forges take, the shortest limit, less some room.
MARKDOWN_CHARACTERS = 60_000

#: Control characters that no XML file may hold, whatever a test printed.
NOT_XML = {code: None for code in range(32) if chr(code) not in "\t\n\r"}


def junit(run: Run) -> str:
    """Every test case of the run in one document: a suite for each target, in the order of the results."""
    root = ElementTree.Element("testsuites", name="plumbline")
    for result in run.results:
        root.append(_suite(result))
    for name in ("tests", "failures", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(result: Result) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=result.label, time=f"{result.seconds:.3f}")
    for path in result.reports:
        # Read before, when the result was made: what cannot be read is a failure there and has no path here.
        suite.extend(ElementTree.parse(path).iter("testcase"))
    told = {case.get("name") for case in suite}
    for failure in result.failed:
        if failure.case not in told or not failure.case:
            case = ElementTree.SubElement(suite, "testcase", classname=result.label, name=failure.case or "target")
            problem = ElementTree.SubElement(case, "error" if failure.infrastructure else "failure")
            problem.set("message", failure.reason.translate(NOT_XML))
            problem.text = failure.trace.translate(NOT_XML)
    if result.unproven:
        case = ElementTree.SubElement(suite, "testcase", classname=result.label, name="target")
        ElementTree.SubElement(case, "skipped", message=f"unproven: {result.unproven}".translate(NOT_XML))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(sum(any(child.tag in ("failure", "error") for child in case) for case in suite)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in suite)))
    return suite


def record(run: Run, facts: Mapping[str, str]) -> dict[str, Any]:
    """The whole run as JSON values; what is not a finite number is null. Refused cells are counted by reason."""
    return {
        "schema": 1,
        **facts,
        "command": run.build.command,
        "started_ms": run.build.started_ms,
        "seconds": run.build.seconds,
        "headline": views.headline(run),
        "num_passed": sum(result.num_passed for result in run.results),
        "num_failed": len(run.failures),
        "tiers": [vars(tier) for tier in views.tiers_of(run)],
        "lanes": [vars(lane) for lane in views.lanes_of(run)],
        "cell_states": views.states_of(run.outcomes),
        "targets": [_target(result) for result in run.results],
        "cells": [_cell(outcome) for outcome in run.outcomes if outcome.state != "refused"],
        "refusals": [
            {"says": reason.says, "hint": reason.hint, "num_cells": len(reason.cells), "always": reason.always}
            for reason in views.refusals_of(run)
        ],
    }


def _target(result: Result) -> dict[str, Any]:
    return {
        "label": result.label,
        "tier": result.tier,
        "num_passed": result.num_passed,
        "num_skipped": result.num_skipped,
        "seconds": result.seconds,
        "cached": result.cached,
        "flaky": result.flaky,
        "unproven": result.unproven or None,
        "failures": [
            {"case": each.case or None, "reason": each.reason, "infrastructure": each.infrastructure}
            for each in result.failed
        ],
    }


def _cell(outcome: Outcome) -> dict[str, Any]:
    cell, verdict = outcome.cell, outcome.verdict
    return {
        "name": cell.name,
        "recipe": cell.recipe,
        "variant": cell.variant,
        "framework": cell.framework,
        "cards": cell.cards,
        "features": list(cell.features),
        "depth": cell.depth,
        "target": cell.target,
        "state": outcome.state,
        "cached": outcome.cached,
        "why": outcome.why or None,
        **(_measured(verdict) if verdict else {}),
    }


def _measured(verdict: Verdict) -> dict[str, Any]:
    return {
        "claims": {claim.name: claim.holds for claim in verdict.claims},
        "seconds": verdict.seconds,
        "losses": [point.loss if math.isfinite(point.loss) else None for point in verdict.curve],
        "replay": verdict.replay,
    }


def markdown(run: Run, facts: Mapping[str, str]) -> str:
    """The summary for a pull request: the sentence, the tiers, and each thing that is red, as far as it fits."""
    lines = [f"## {views.headline(run)}", "", views.summary(run), ""]
    lines += ["| tier | targets | passed | failed | cached | not here |", "|---|--:|--:|--:|--:|--:|"]
    for tier in views.tiers_of(run):
        numbers = (tier.num_targets, tier.num_passed, tier.num_failed, tier.num_cached, tier.num_unproven)
        lines.append(f"| {tier.name} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    for lane in views.lanes_of(run):
        over = "**over its budget**, " if lane.seconds > lane.seconds_max else ""
        lines += ["", f"Smoke tests that block a change, {lane.accelerator}: {lane.seconds:,.0f} s of "]
        lines[-1] += f"{lane.seconds_max:,.0f} s; {over}{lane.num_ran:,} ran, {lane.num_cached:,} cached."
    if run.outcomes:
        states = {state: count for state, count in views.states_of(run.outcomes).items() if count}
        lines += ["", "Smoke cells: " + ", ".join(f"**{count:,}** {state}" for state, count in states.items()) + "."]
    for title, infrastructure in (("Failed", False), ("Infrastructure", True)):
        failures = views.failures_of(run, infrastructure=infrastructure)
        if failures:
            lines += ["", f"### {title}", ""]
            lines += [f"- `{result.label}` {_inline(str(failure))}" for result, failure in failures]
    flaky = [result.label for result in run.results if result.flaky]
    if flaky:
        lines += ["", "### Flaky", "", *(f"- `{label}`" for label in flaky)]
    unproven = views.unproven_of(run)
    if unproven:
        lines += ["", "### Not provable on this machine", ""]
        lines += [f"- {_inline(reason.says)}: {len(reason.targets):,} targets" for reason in unproven]
    lines += ["", " · ".join(f"{name} {text}" for name, text in facts.items())]
    return _fitting(lines)


def _inline(text: str) -> str:
    """Text that Markdown takes literally, on one line."""
    for sign in "\\`*_<>[]|#":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _fitting(lines: list[str]) -> str:
    room = MARKDOWN_CHARACTERS - 100
    kept: list[str] = []
    for at, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            kept.append(f"… and {len(lines) - at} lines more, in the report.")
            break
        kept.append(line)
    return "\n".join(kept) + "\n"
