"""Which cells `cell_test.py` runs: the one that a Bazel target names, or what the options of a plain pytest select.

    python -m pytest tests/smoke --accelerator nvidia --cards 1

needs nothing but this checkout and whatever torch is installed, and leaves the same verdicts as Bazel's targets.
"""

import os
from pathlib import Path

import pytest

UNDER_BAZEL = "TEST_TMPDIR" in os.environ


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each cell."""
    if "cell" not in metafunc.fixturenames:
        return
    from tests.smoke.covering import depths
    from tests.smoke.matrix import Matrix, cell_named

    if name := os.environ.get("PLUMBLINE_CELL"):
        chosen = [cell_named(name)]
    else:
        option = metafunc.config.getoption
        wanted = ("blocking",) if option("depth") == "blocking" else ("blocking", "full")
        chosen = [
            cell
            for cell, depth in depths(Matrix()).items()
            if cell.variant == option("accelerator") and depth in wanted and option("cards") in (None, cell.cards)
        ]
    metafunc.parametrize("cell", chosen, ids=[cell.name for cell in chosen])


@pytest.fixture
def verdicts(request: pytest.FixtureRequest) -> Path:
    """Where the verdict of this test goes."""
    if outputs := os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR"):
        return Path(outputs)
    return Path(request.config.getoption("verdicts"), request.node.callspec.id)
