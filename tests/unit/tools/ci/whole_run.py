"""One run with something of everything that a report shows, over a matrix of the real one's size."""

from pathlib import Path

from tests.unit.tools.ci import smoke_files
from tests.unit.tools.ci.runs import PASS, SKIP, Run, Smoke, fail

#: What a test may say, and what must not become part of a page.
HOSTILE = "</script><script>alert(1)</script> & <b> ]]> `|` <img src=https://example.com/x.png>"

#: The same as a terminal would be sent it, which no XML file can hold.
PRINTED = f"\x1b[31m{HOSTILE}\x1b[0m\x00\n"


#: What cells of a recipe that draws have learned from.
DRAWN = [
    {"prompt": "What is 1 + 1?", "completion": HOSTILE, "rewards": {"share": 0.25, "length": -1.5}},
    {"prompt": "Say it at length.", "completion": "word " * 900, "rewards": {"share": None}},
]


def red_run(folder: Path, features: tuple[str, ...] = smoke_files.FEATURES) -> Path:
    """The event file of a run that failed in every way."""
    cells = smoke_files.matrix(features)["cells"]
    run = Smoke(folder, *cells)
    blocking = [cell for cell in cells if cell["depth"] == "blocking"]
    here = [cell for cell in blocking if cell["variant"] == "cpu"]
    for cell in blocking:
        if cell["variant"] != "cpu":
            run.skipped(cell["target"], "skipped", tags=("smoke", f"gpu-{cell['variant']}"))
    broken, odd, _missing, *rest = here
    claims = [smoke_files.claim("golden", "equals golden", 0.3, 2e-6, holds=False, detail="step 3 differs")]
    raw = smoke_files.verdict(broken, status="failed", claims=claims, curve=smoke_files.curve(shift=0.1))
    run.configured(broken["target"])
    run.result(broken["target"], {"test_cell": fail(HOSTILE)}, left={"verdict.json": raw}, log=PRINTED * 900)
    run.summary(broken["target"], "FAILED")
    claims = [smoke_files.claim("world", "the world is as asked for", 1, 4, holds=False, detail=PRINTED)]
    run.cell(odd, smoke_files.verdict(odd, status="failed", claims=claims))
    for at, cell in enumerate(rest):
        drawn = {"completions": DRAWN} if cell["recipe"] == "ppo" else {}
        raw = smoke_files.verdict(cell, **drawn)
        run.cell(cell, raw, cached=at % 3 == 0, packed=at % 2 == 0, seconds=20.0 + at, log=f"{cell['name']}\n" * 90)
    run.test("//tests/unit/training:a_test", {"test_one": PASS, "test_two": SKIP}, cached=True)
    run.test("//tests/unit/training:b_test", {"test_three": fail(HOSTILE), "test_four": PASS}, "FAILED", log="the log")
    run.test("//tests/subsystem:c_test", None, "REMOTE_FAILURE")
    run.configured("//tests/subsystem:d_test")
    run.result("//tests/subsystem:d_test", {"test_five": fail("once")}, attempt=1)
    run.result("//tests/subsystem:d_test", {"test_five": PASS}, attempt=2)
    run.summary("//tests/subsystem:d_test", "FLAKY")
    return run.write(code=3, name="TESTS_FAILED")


def green_run(folder: Path) -> Path:
    """The event file of a run without a smoke tier in which everything passed."""
    run = Run(folder)
    run.asked("//...")
    run.test("//tests/unit/training:a_test", {"test_one": PASS})
    run.skipped("//tools/lint:b_test", "skipped", tags=("lint", "needs:buildifier"))
    return run.write()
