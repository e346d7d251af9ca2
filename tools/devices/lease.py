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
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tools.devices.check import EXIT_CODE, FARM, LEASED
from tools.devices.detect import Device, devices, kind

FOLDER = Path("/dev/shm/plumbline-devices")
"""One for each machine, writable in Bazel's sandbox. Containers and workers that share cards must share it."""

ON_WORKERS = Path("/etc/plumbline-leases")
"""Where a worker of the local cluster shows it to its actions, read-only."""

SHARES_MAX = 8
"""Of one card; workers show actions a folder in which the files of so many are, and which they cannot write."""

PART_OF_TIMEOUT = 0.5
"""How much of its own time-out a test may wait: it needs the rest, and who is ended by Bazel cannot say why."""

ORDER = {
    "CUDA_VISIBLE_DEVICES": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    "ZE_AFFINITY_MASK": {"ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"},
}
"""What makes libraries number cards as the probes do."""

SECONDS_BETWEEN = 0.05


class LeaseError(Exception):
    """Cards that cannot be had, for a reason that is not the test's."""


class TooFewError(LeaseError):
    """More cards than there are: waiting would not help."""


class HeldError(LeaseError):
    """Cards that others held for as long as this process may wait."""


@dataclass(frozen=True)
class Wish:
    """What a test asks for."""

    accelerator: str
    """Word in the table."""
    cards: int
    """At least one."""
    visible: str
    """The variable by which the accelerator's libraries are given cards."""
    hardware: str = ""
    """The one kind of card that its result is filed under; any if it is empty, or if it is a farm's and not named."""
    shares: int = 1
    """How many may have one card at a time."""
    seconds_max: float | None = None
    """How long it may wait; None for as long as it takes."""


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


def take(wish: Wish, found: list[Device], folder: Path = FOLDER) -> Lease:
    """Waits until so many cards are free, and holds them.

    Args:
        wish: what is asked for.
        found: every card in reach.
        folder: of the lock files.

    Raises:
        TooFewError: there are not so many.
        HeldError: others hold them for longer than the wish allows.
        LeaseError: the folder has no files for them.
    """
    every = [each for each in found if each.accelerator == wish.accelerator]
    fit = [each for each in every if not wish.hardware or kind(each) == wish.hardware]
    if wish.cards > len(fit):
        which = f" of this kind, {wish.hardware}" if len(fit) < len(every) else ""
        raise TooFewError(f"cards: {len(fit)} of {wish.accelerator}{which}; expected {wish.cards} or more")
    folder.mkdir(mode=0o777, parents=True, exist_ok=True)
    deadline = None if wish.seconds_max is None else time.monotonic() + wish.seconds_max
    whole = wish.cards > 1 or wish.shares == 1
    held: dict[str, list[int]] = {}
    gate = _open(folder, wish.accelerator)
    try:
        _lock_in_turn(gate, wish)
        while len(held) < wish.cards:
            for card in fit:
                if len(held) == wish.cards:
                    break
                if card.identity not in held and (files := _hold(folder, card, wish.shares, whole)):
                    held[card.identity] = files
            if len(held) < wish.cards:
                if deadline is not None and time.monotonic() > deadline:
                    raise _held(wish, f"{len(held)} came free")
                time.sleep(SECONDS_BETWEEN)
    except LeaseError:
        for file in (file for files in held.values() for file in files):
            os.close(file)
        raise
    finally:
        os.close(gate)
    own = [each for each in fit if each.identity in held]
    variables = _variables(wish.visible, every, own) | ({} if whole else _memory(wish.shares))
    return Lease(own, variables, [file for files in held.values() for file in files])


def prepare(found: list[Device], folder: Path = FOLDER) -> None:
    """Makes every file that a lease opens, for those who see the folder and cannot write there."""
    folder.mkdir(mode=0o777, parents=True, exist_ok=True)
    for name in {each.accelerator for each in found}:
        os.close(_open(folder, name))
    for card in found:
        for share in range(SHARES_MAX):
            os.close(_open(folder, f"{card.identity}.{share}"))


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_in_turn(gate: int, wish: Wish) -> None:
    """Waits at the gate, where the kernel keeps the order: asking again and again would lose one's turn."""

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise _held(wish, "others came before it")

    if wish.seconds_max is None:
        return fcntl.flock(gate, fcntl.LOCK_EX)
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, max(wish.seconds_max, 0.001))
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _held(wish: Wish, instead: str) -> HeldError:
    return HeldError(
        f"cards: {wish.cards} of {wish.accelerator} were not free within {wish.seconds_max:g} s, {instead}; "
        "expected them free. hint: as many --local_test_jobs as there are cards, or a longer --test_timeout"
    )


def _hold(folder: Path, card: Device, shares: int, whole: bool) -> list[int]:
    """The open files of one share of a card, or of all of them; none if it is not free."""
    files: list[int] = []
    for share in range(shares):
        file = _open(folder, f"{card.identity}.{share}")
        if _locked(file):
            files.append(file)
            if not whole:
                return files
        else:
            os.close(file)
            if whole:
                break
    else:
        return files
    for file in files:
        os.close(file)
    return []


def _open(folder: Path, name: str) -> int:
    """A lock file, which nobody writes: a worker's actions see it in a folder that is read-only for them.

    A link that somebody put in its place is refused.
    """
    path = folder / name.replace("/", "_")
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise LeaseError(
            f"lease: {path} cannot be opened ({error.strerror}); expected a file. "
            "hint: a folder in PLUMBLINE_LEASES that can be written, or ./bazelw run //tools/pools:up anew"
        ) from error


def _variables(visible: str, every: list[Device], own: list[Device]) -> dict[str, str]:
    """UUIDs where the maker's libraries take them, else numbers, in an order that is fixed to that of the bus."""
    named = all(each.identity.startswith("GPU-") for each in own)
    values = [each.identity if named else str(every.index(each)) for each in own]
    return {visible: ",".join(values), LEASED: ",".join(each.identity for each in own), **ORDER.get(visible, {})}


def _memory(shares: int) -> dict[str, str]:
    """Torch's own limit, which each process of a test reads; a tenth stays for what the allocator does not count."""
    return {"PYTORCH_ALLOC_CONF": f"per_process_memory_fraction:{0.9 / shares:.3f}"}


def asked_in(environment: Mapping[str, str]) -> Wish | None:
    """What the macro put into the environment, and Bazel; None on the cpu, or if leased.

    Raises:
        LeaseError: more shares of a card than there may be.
    """
    accelerator = environment.get("PLUMBLINE_ACCELERATOR", "cpu")
    if accelerator == "cpu" or LEASED in environment:
        return None
    shares, hardware = int(environment.get("PLUMBLINE_CARD_SHARES", "1")), environment.get("PLUMBLINE_HARDWARE", "")
    if not 1 <= shares <= SHARES_MAX:
        raise LeaseError(f"PLUMBLINE_CARD_SHARES: {shares}; expected 1 to {SHARES_MAX}")
    timeout = environment.get("TEST_TIMEOUT")
    return Wish(
        accelerator,
        int(environment["PLUMBLINE_CARDS"]),
        environment["PLUMBLINE_VISIBLE"],
        "" if hardware.startswith(FARM) else hardware,
        shares,
        float(timeout) * PART_OF_TIMEOUT if timeout else None,
    )


def lease_for_this_process(found: list[Device]) -> Lease | None:
    """The cards that this process's environment asks for, in its environment from now on; None if it asks for none."""
    asked = asked_in(os.environ)
    if asked is None:
        return None
    folder = ON_WORKERS if ON_WORKERS.is_dir() else FOLDER
    lease = take(asked, found, Path(os.environ.get("PLUMBLINE_LEASES", folder)))
    # One of these from outside would choose among the chosen.
    for other in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        os.environ.pop(other, None)
    os.environ.update(lease.variables)
    return lease


def main(arguments: list[str]) -> int:
    """Becomes the command, which keeps the cards until it is gone, and all that have its files open are."""
    try:
        lease = lease_for_this_process(devices())
    except LeaseError as error:
        print(f"lease: {str(error).removeprefix('lease: ')}", file=sys.stderr)
        return EXIT_CODE
    for file in lease.files if lease else ():
        os.set_inheritable(file, True)
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
