"""Which cells `cell_test.py` runs: the one that a Bazel target names, or what the options of a plain pytest select.

    python -m pytest tests/smoke --accelerator nvidia --cards 1

needs nothing but this checkout, pytest and what training needs, with whatever torch is installed, and leaves the same
verdicts as Bazel's targets. On a machine without the cards it ends as a test of Bazel does there: with an exit code of
its own, and with what was looked for and found.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from tests.smoke.listed import ACCELERATORS, listed, names_of
from tests.smoke.matrix import TABLES, Cell, cell_named

UNDER_BAZEL = "TEST_TMPDIR" in os.environ

CELLS = "cell_test.py"

collect_ignore = (
    [] if UNDER_BAZEL else [each.name for each in Path(__file__).parent.glob("*_test.py") if each.name != CELLS]
)
"""The other tests here are of the matrix and of this tier itself, and some ask for what only Bazel's macros give."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The choice that Bazel makes by targets and platforms."""
    group = parser.getgroup("smoke", "which cells of the smoke matrix run, without Bazel")
    group.addoption("--accelerator", default="cpu", help="a variant: cpu, nvidia, amd or intel")
    group.addoption("--cards", type=int, help="only cells with so many ranks")
    group.addoption("--depth", default="blocking", choices=["blocking", "full"], help="full: everything allowed")
    group.addoption("--verdicts", default=".plumbline/verdicts", help="where verdicts go, a folder for each cell")


def pytest_configure(config: pytest.Config) -> None:
    """Settles threads, hubs and homes before anything heavy is imported, as Bazel's runner does."""
    if not UNDER_BAZEL:
        import tempfile

        from tools.bazel.hermetic import settle_environment

        settle_environment(Path(tempfile.mkdtemp(prefix="plumbline-smoke-")), cpus=1)


def chosen(config: pytest.Config) -> list[Cell]:
    """The cells that the environment or the options name.

    Raises:
        UsageError: there is none: no cell has so many cards.
    """
    if name := os.environ.get("PLUMBLINE_CELL"):
        return [cell_named(name)]
    variant, cards = config.getoption("accelerator"), config.getoption("cards")
    if variant not in TABLES.variants:
        raise pytest.UsageError(f"--accelerator {variant}: expected one of {', '.join(TABLES.variants)}")
    row = TABLES.variants[variant]
    wanted = ("blocking",) if config.getoption("depth") == "blocking" else ("blocking", "full")
    found = [cell for cell, depth in listed(row.accelerator).items() if depth in wanted and cards in (None, cell.cards)]
    if not found:
        numbers = ", ".join(map(str, row.cards))
        raise pytest.UsageError(f"--cards {cards}: no cell of {variant} has so many; expected one of {numbers}")
    return found


def wrong_machine(accelerator: str, cards: int) -> str | None:
    """What this machine lacks to run cells of an accelerator, as Bazel's runner says it; None if nothing."""
    from tools.devices.check import FARM, Asked, problem
    from tools.devices.detect import devices

    row = names_of(ACCELERATORS)["ACCELERATORS"][accelerator]
    torch = importlib.util.find_spec("torch")
    version = Path(torch.origin).with_name("version.py") if torch and torch.origin else None
    # A result is not filed under the hardware that somebody has looked at before: the verdict says what it ran on.
    reason = problem(Asked(accelerator, cards, row.memory_gib, row.driver, row.torch, FARM), devices(), None, version)
    return reason and f"{reason.partition('. hint:')[0]}. hint: fewer --cards, another --accelerator, or docs/pools.md"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ends what was started on a machine without the cards that it asks for: that is no news about the code."""
    if UNDER_BAZEL:
        return
    cells = chosen(session.config)
    if cells[0].variant != "cpu" and (reason := wrong_machine(cells[0].accelerator, max(each.cards for each in cells))):
        from tools.devices.check import EXIT_CODE

        pytest.exit(f"infrastructure, not the code: {reason}", returncode=EXIT_CODE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each cell."""
    if "cell" in metafunc.fixturenames:
        cells = chosen(metafunc.config)
        metafunc.parametrize("cell", cells, ids=[cell.name for cell in cells])


@pytest.fixture
def verdicts(request: pytest.FixtureRequest) -> Path:
    """Where the verdict of this test goes."""
    if outputs := os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR"):
        return Path(outputs)
    return Path(request.config.getoption("verdicts"), request.node.callspec.id)
