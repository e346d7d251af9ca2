"""Cards for this process alone: N of the M that are here or none, until it ends, however it ends.

Bazel counts resources and never says which: two tests that ask for one card each would both find card 0. So the runner
takes a lease before it looks. What does not run under it does so by

    ./bazelw test --run_under=//tools/devices:lease TARGET
    python -m tools.devices.lease COMMAND...      with the PLUMBLINE_ variables that the macro sets

A lock file for each card is held by `flock`, which the kernel lets go when the last process that has it open is gone: a
holder that was killed leaves nothing to clean up. Whoever asks first gets his cards first: one process at a time
stands at the gate of an accelerator and keeps what comes free until it has enough. So nobody holds some cards while
it waits for a holder of others, and who wants four is not overtaken for ever by those who want one.

With `shares` greater than 1, so many processes that want one card each may have the same one, and each is told its part
of the memory. Who wants more than one card has them whole.
"""

import fcntl
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.devices.check import EXIT_CODE, LEASED
from tools.devices.detect import Device, devices

FOLDER = Path("/dev/shm/plumbline-devices")
"""One for each machine, writable in Bazel's sandbox. Containers that share cards must share it."""

ORDER = {
    "CUDA_VISIBLE_DEVICES": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    "ZE_AFFINITY_MASK": {"ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"},
}
"""What makes libraries number cards as the probes do."""

SECONDS_BETWEEN = 0.05


class TooFewError(Exception):
    """More cards than there are: waiting would not help."""


@dataclass
class Lease:
    """Cards that are held, and the open files that hold them."""

    cards: list[Device]
    variables: dict[str, str]
    """By which libraries see these cards and no others."""
    files: list[int]

    def give_back(self) -> None:
        """Lets go of every card."""
        while self.files:
            os.close(self.files.pop())


def take(
    accelerator: str, cards: int, visible: str, found: list[Device], folder: Path = FOLDER, shares: int = 1
) -> Lease:
    """Waits until so many cards are free, and holds them.

    Args:
        accelerator: word in the table.
        cards: how many; at least one.
        visible: the variable by which the accelerator's libraries are given cards.
        found: every card in reach.
        folder: of the lock files.
        shares: how many may have one card at a time.

    Raises:
        TooFewError: there are not so many.
    """
    every = [each for each in found if each.accelerator == accelerator]
    if cards > len(every):
        raise TooFewError(f"cards: {len(every)} of {accelerator}; expected {cards} or more")
    folder.mkdir(mode=0o777, parents=True, exist_ok=True)
    whole = cards > 1 or shares == 1
    gate = _open(folder, accelerator)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        held: dict[str, list[int]] = {}
        while len(held) < cards:
            for card in every:
                if len(held) < cards and card.identity not in held and (files := _hold(folder, card, shares, whole)):
                    held[card.identity] = files
            if len(held) < cards:
                time.sleep(SECONDS_BETWEEN)
    finally:
        os.close(gate)
    own = [each for each in every if each.identity in held]
    variables = _variables(visible, every, own) | ({} if whole else _memory(shares))
    return Lease(own, variables, [file for files in held.values() for file in files])


def _hold(folder: Path, card: Device, shares: int, whole: bool) -> list[int]:
    """The open files of one share of a card, or of all of them; none if it is not free."""
    files: list[int] = []
    for share in range(shares):
        file = _open(folder, f"{card.identity}.{share}")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            if whole:
                break
        else:
            files.append(file)
            if not whole:
                return files
    else:
        return files
    for file in files:
        os.close(file)
    return []


def _open(folder: Path, name: str) -> int:
    """A lock file; a link that somebody put in its place is refused."""
    return os.open(folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _variables(visible: str, every: list[Device], own: list[Device]) -> dict[str, str]:
    """UUIDs where the maker's libraries take them, else numbers, in an order that is fixed to that of the bus."""
    named = all(each.identity.startswith("GPU-") for each in own)
    values = [each.identity if named else str(every.index(each)) for each in own]
    return {visible: ",".join(values), LEASED: ",".join(each.identity for each in own), **ORDER.get(visible, {})}


def _memory(shares: int) -> dict[str, str]:
    """Torch's own limit, which each process of a test reads; a tenth stays for what the allocator does not count."""
    return {"PYTORCH_ALLOC_CONF": f"per_process_memory_fraction:{0.9 / shares:.3f}"}


def asked_in(environment: Mapping[str, str]) -> tuple[str, int, str] | None:
    """Accelerator, cards and variable that the macro put into the environment; None on the cpu, or if leased."""
    accelerator = environment.get("PLUMBLINE_ACCELERATOR", "cpu")
    if accelerator == "cpu" or LEASED in environment:
        return None
    return accelerator, int(environment["PLUMBLINE_CARDS"]), environment["PLUMBLINE_VISIBLE"]


def lease_for_this_process(found: list[Device]) -> Lease | None:
    """The cards that this process's environment asks for, in its environment from now on; None if it asks for none."""
    asked = asked_in(os.environ)
    if asked is None:
        return None
    folder = Path(os.environ.get("PLUMBLINE_LEASES", FOLDER))
    lease = take(*asked, found, folder, int(os.environ.get("PLUMBLINE_CARD_SHARES", "1")))
    # One of these from outside would choose among the chosen.
    for other in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        os.environ.pop(other, None)
    os.environ.update(lease.variables)
    return lease


def main(arguments: list[str]) -> int:
    """Becomes the command, which keeps the cards until it is gone, and all that have its files open are."""
    try:
        lease = lease_for_this_process(devices())
    except TooFewError as error:
        print(f"lease: {error}", file=sys.stderr)
        return EXIT_CODE
    for file in lease.files if lease else ():
        os.set_inheritable(file, True)
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
