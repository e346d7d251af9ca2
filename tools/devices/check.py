"""Whether a test is where it asked to be. Called by the runner before it collects anything; the standard library alone.

A test that lands on the wrong machine may fail for no fault of the code, or pass for no merit of it: a build of torch
without kernels for the card falls back, a smaller card runs out of memory, and a result of one model would be shown for
another. So a mismatch is neither: it is a failure of the infrastructure, with an exit code and a type of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.devices.detect import Device, fingerprint, kind

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
    driver: str
    """The oldest that will do; any will if it is empty."""
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
        environment["PLUMBLINE_DRIVER"],
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
    if old := [each for each in own if _numbers(each.driver) < _numbers(asked.driver)]:
        return (
            f"driver: {old[0].driver} of {old[0].name}; expected {asked.driver} or newer, for the build of torch. "
            "hint: a newer driver on that machine; the oldest one is in tools/bazel/accelerators.bzl"
        )
    strangers = [each for each in own if kind(each) != asked.hardware]
    if strangers and not asked.hardware.startswith(FARM):
        return (
            f"hardware: {fingerprint(strangers)}; expected {asked.hardware or 'none'}, where a result would be filed. "
            "hint: ./bazelw shutdown, so that the cards are looked at again, or what PLUMBLINE_FARM says of a farm's"
        )
    if torch_version is not None and not _field(torch_version, asked.torch):
        return (
            f"torch: version {_field(torch_version, '__version__')}, without {asked.torch}; expected a build for "
            f"{asked.accelerator}. hint: the lock of that accelerator, and the --config that picks it"
        )
    return None


@dataclass(frozen=True)
class Place:
    """What a worker says of itself to the actions that come to it."""

    pool: str
    simulated: bool
    """Whether it stands for cards that it does not have."""
    hardware: str
    """The kind of its cards, or ""."""

    def text(self) -> str:
        """The file MARKER of such a worker."""
        lines = [
            self.pool,
            *(["simulated"] if self.simulated else []),
            *([f"{_HARDWARE}{self.hardware}"] * bool(self.hardware)),
        ]
        return "".join(f"{line}\n" for line in lines)

    @property
    def sentence(self) -> str:
        """The same, as the end of a sentence."""
        note = ", which is simulated: it proves the route and no hardware" if self.simulated else ""
        return f"; on a worker of pool {self.pool}{f' with {self.hardware}' if self.hardware else ''}{note}"


_HARDWARE = "hardware "


def place(marker: Path = MARKER) -> Place | None:
    """Where a farm has sent this test; None on a machine that is no worker of ours."""
    if not marker.is_file():
        return None
    pool, *lines = marker.read_text(encoding="utf-8").splitlines()
    hardware = [line.removeprefix(_HARDWARE) for line in lines if line.startswith(_HARDWARE)]
    return Place(pool, "simulated" in lines, "".join(hardware))


def astray(pool: str, hardware: str, here: Place | None) -> str | None:
    """How the worker that this test came to differs from the one that it was sent to, or None.

    Args:
        pool: which its target names; any if it is empty.
        hardware: the kind of card that its result is filed under; any if it is empty, or a farm's and not named.
        here: what the worker says of itself; None on a machine that is no worker of ours.
    """
    if here is None:
        return None
    if pool and here.pool != pool:
        return f"pool: {here.pool}; expected {pool}. hint: ./bazelw run //tools/pools:routes"
    if here.hardware and hardware and not hardware.startswith(FARM) and here.hardware != hardware:
        return (
            f"hardware: the worker has {here.hardware}; expected {hardware}, where a result would be filed. "
            "hint: what PLUMBLINE_FARM says of the farm's cards"
        )
    return None


def only_the_route(pool: str, here: Place | None) -> str:
    """What a test of the cpu shows that was sent to a pool of cards without cards, or why it shows nothing.

    Raises:
        LookupError: it did not come to a worker of that pool, or to one that has cards.
    """
    if here is None or here.pool != pool:
        came = here.sentence.removeprefix("; on ") if here else "no worker of a pool"
        raise LookupError(
            f"route: came to {came}; expected a worker of pool {pool}. "
            "hint: --config=remote, and ./bazelw run //tools/pools:up"
        )
    if not here.simulated:
        raise LookupError(
            f"route: the worker of pool {pool} has cards; expected a simulated one. "
            "hint: the cells of that accelerator prove more"
        )
    return f"routing only, no card: a test of the cpu, on a worker of pool {pool}, which is simulated"


def _numbers(version: str) -> list[int]:
    """What versions are compared by: 580.65.06 is newer than 580 and than 570.211."""
    return [int(each) for each in re.findall(r"\d+", version)]


def _field(file: Path, name: str) -> str | None:
    """The text that a variable of torch/version.py has; it is read and not imported, which would take seconds."""
    found = re.search(
        rf"^{re.escape(name)}\b[^=]*= *['\"]([^'\"]+)['\"]", file.read_text(encoding="utf-8"), re.MULTILINE
    )
    return found[1] if found else None
