"""Whether a test is where it asked to be. Called by the runner before it collects anything; the standard library alone.

A test that lands on the wrong machine may fail for no fault of the code, or pass for no merit of it: a build of torch
without kernels for the card falls back, a smaller card runs out of memory, and a result of one model would be shown for
another. So a mismatch is neither: it is a failure of the infrastructure, with an exit code and a type of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.devices.detect import Device, fingerprint

EXIT_CODE = 69
"""EX_UNAVAILABLE: a service that was needed is not there."""

FARM = "farm:"
"""Begins the fingerprint of machines that whoever built the test could not look at."""

LEASED = "PLUMBLINE_LEASED"
"""Identities of the cards that were leased to this process, by commas; without it, all in reach are its own."""

MARKER = Path("/etc/plumbline-pool")
"""Where a worker of the local cluster says which pool it is of, and whether that is simulated."""

GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """What the macro wrote into the environment of a test for an accelerator."""

    accelerator: str
    cards: int
    card_gib: int
    torch: str
    """The field of torch.version that must be set."""
    hardware: str
    """Fingerprint of the cards that the result is filed under."""


def asked_in(environment: Mapping[str, str]) -> Asked:
    """What a test that is not for the cpu asks for."""
    return Asked(
        environment["PLUMBLINE_ACCELERATOR"],
        int(environment["PLUMBLINE_CARDS"]),
        int(environment["PLUMBLINE_CARD_GIB"]),
        environment["PLUMBLINE_TORCH"],
        environment["PLUMBLINE_HARDWARE"],
    )


def problem(asked: Asked, found: list[Device], leased: str | None, torch_version: Path | None) -> str | None:
    """How what is there differs from what was asked for, or None.

    Args:
        asked: what the target says.
        found: every card in reach.
        leased: value of the variable LEASED, or None.
        torch_version: the file torch/version.py that the test would import, or None if it does not bring torch.
    """
    every = [each for each in found if each.accelerator == asked.accelerator]
    own = every if leased is None else [each for each in every if each.identity in leased.split(",")]
    if len(own) < asked.cards:
        others = ", ".join(sorted({each.accelerator for each in found} - {asked.accelerator}))
        return (
            f"cards: {len(own)} of {asked.accelerator}{others and f', beside {others}'}; "
            f"expected {asked.cards} or more. hint: run it where they are, or leave --config of that accelerator out"
        )
    if small := [each for each in own if each.memory_bytes < asked.card_gib * GIB]:
        return (
            f"memory: {small[0].memory_bytes / GIB:.1f} GiB on {small[0].name}; expected {asked.card_gib} or more. "
            "hint: memory_gib in tools/bazel/accelerators.bzl"
        )
    if not asked.hardware.startswith(FARM) and asked.hardware != fingerprint(every):
        return (
            f"hardware: {fingerprint(every)}; expected {asked.hardware or 'none'}, where a result would be filed. "
            "hint: ./bazelw shutdown, so that the cards are looked at again"
        )
    if torch_version is not None and not _field(torch_version, asked.torch):
        return (
            f"torch: version {_field(torch_version, '__version__')}, without {asked.torch}; expected a build for "
            f"{asked.accelerator}. hint: the lock of that accelerator, and the --config that picks it"
        )
    return None


def place(marker: Path = MARKER) -> str:
    """Where a farm has sent this test, as the end of a sentence; nothing on a machine that is no worker of ours."""
    if not marker.is_file():
        return ""
    pool, *simulated = marker.read_text(encoding="utf-8").split()
    note = ", which is simulated: it proves the route and no hardware" if simulated else ""
    return f"; on a worker of pool {pool}{note}"


def _field(file: Path, name: str) -> str | None:
    """The text that a variable of torch/version.py has; it is read and not imported, which would take seconds."""
    found = re.search(
        rf"^{re.escape(name)}\b[^=]*= *['\"]([^'\"]+)['\"]", file.read_text(encoding="utf-8"), re.MULTILINE
    )
    return found[1] if found else None
