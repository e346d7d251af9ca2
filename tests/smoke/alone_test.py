"""Cells without Bazel: the documented command, typed, in a process that has what a person without Bazel has."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smoke.matrix import TABLES, cell_named
from tests.smoke.verdict import FILE
from tools.ci.cells import parse_verdict
from tools.devices.check import EXIT_CODE
from tools.devices.detect import devices

CELL = "sft_single_x1"
Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def typed(tmp_path: Path) -> Typed:
    """Types the command with some options, where nothing is as Bazel has it and nobody has installed allpairspy."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/allpairspy.py").write_text("raise ModuleNotFoundError(__name__)\n")
    ours = ("TEST_", "TESTBRIDGE_", "PLUMBLINE_", "PYTEST_", "XML_OUTPUT_FILE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "absent"), *(each or os.getcwd() for each in sys.path)])

    def typed(*options: str, path: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "tests/smoke", "-p", "no:cacheprovider", *options]
        search = os.pathsep.join([*filter(None, [path]), environment["PATH"]])
        return subprocess.run(
            command, env=environment | {"PATH": search}, capture_output=True, text=True, check=False, timeout=600
        )

    return typed


def test_a_cell_of_the_cpu_is_proven_and_leaves_its_verdict(typed: Typed, tmp_path: Path) -> None:
    ran = typed("--accelerator", "cpu", "--cards", "1", "-k", CELL, "--verdicts", str(tmp_path / "verdicts"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout
    file = tmp_path / "verdicts" / CELL / FILE
    verdict = parse_verdict(file.read_bytes(), str(file))
    assert (verdict.status, verdict.problem, verdict.cell.name) == ("proven", "", CELL)
    assert [each.name for each in verdict.claims] == list(cell_named(CELL).claims)
    assert (
        verdict.replay
        == f"python -m pytest tests/smoke/cell_test.py --accelerator cpu --cards 1 --depth full -k '{CELL}'"
    )


def test_cells_are_all_that_it_collects(typed: Typed) -> None:
    """Other tests stand in this folder, this one among them, and ask for what only Bazel gives."""
    assert Path("tests/smoke/cards_test.py").exists()
    ran = typed("--accelerator", "cpu", "--collect-only", "-q")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    collected = [line for line in ran.stdout.splitlines() if "::" in line]
    assert f"tests/smoke/cell_test.py::test_cell[{CELL}]" in collected
    assert {line.partition("::")[0] for line in collected} == {"tests/smoke/cell_test.py"}


def test_cells_of_cards_that_are_not_here_end_as_a_failure_of_the_infrastructure(typed: Typed) -> None:
    found = [each.accelerator for each in devices()]
    absent = next(name for name, row in TABLES.variants.items() if name != "cpu" and row.accelerator not in found)
    ran = typed("--accelerator", absent, "--cards", "1")
    assert ran.returncode == EXIT_CODE, ran.stdout + ran.stderr
    asked = TABLES.variants[absent].accelerator
    assert f"infrastructure, not the code: cards: 0 of {asked}" in ran.stderr
    assert "; expected 1 or more. hint: fewer --cards, another --accelerator, or docs/pools.md" in ran.stderr


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        ("580.82.07", r"torch: version \S+, without cuda; expected a build for gpu-nvidia"),
        ("570.86", r"driver: 570\.86 of NVIDIA L4; expected 580 or newer, for the build of torch"),
    ],
)
def test_so_do_cells_for_which_there_is_no_build_of_torch_or_no_driver_for_it(
    typed: Typed, tmp_path: Path, driver: str, said: str
) -> None:
    """A card that only shows, on a machine with the wheels of the CPU."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 'GPU-1, NVIDIA L4, 23034, {driver}'\n")
    program.chmod(0o755)
    ran = typed("--accelerator", "nvidia", "--cards", "1", path=str(program.parent))
    assert ran.returncode == EXIT_CODE, ran.stdout + ran.stderr
    assert re.search(f"infrastructure, not the code: {said}", ran.stderr)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cards", "3"], "--cards 3: no cell of cpu has so many; expected one of 1, 2, 4"),
        (["--accelerator", "abacus"], "--accelerator abacus: expected one of cpu, nvidia, amd, intel"),
    ],
)
def test_options_that_name_no_cell_are_refused(typed: Typed, options: list[str], said: str) -> None:
    ran = typed(*options)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in ran.stderr
