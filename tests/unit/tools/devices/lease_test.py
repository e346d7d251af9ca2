"""Leases of cards that are not there, by processes that are, and of which some are killed while they hold them.

That two never have the same card is seen by a second kind of lock, which the lease knows nothing of and the kernel
also takes back from the dead.
"""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.tools.devices.machines import nvidia_smi
from tools.devices.check import EXIT_CODE
from tools.devices.detect import Device, kind
from tools.devices.lease import HeldError, Lease, LeaseError, TooFewError, Wish, asked_in, take

VISIBLE = "ROCR_VISIBLE_DEVICES"
CARDS = [Device("gpu-amd", f"GPU-{each}", "gfx942", 2**37, "6.12") for each in range(4)]
OTHERS = [Device("gpu-nvidia", f"GPU-n{each}", "L4", 2**34, "570") for each in range(2)]
HELD_TWICE, OVER = 3, 0
ONE, ALL = (Wish("gpu-amd", cards, VISIBLE) for cards in (1, 4))


def start(work: Callable[[], int], *ours: Lease) -> int:
    """The id of a process that does this and leaves with what it returns; of our leases it keeps none.

    A fork has every file of its parent open, and so holds what the parent holds: the ranks of a run must.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        for lease in ours:
            lease.give_back()
        os._exit(work())
    return child


def hold(folder: Path, cards: int, shares: int, dies: bool) -> int:
    """Takes cards, sees that nobody else has them, and gives them back or dies."""
    # Opened first, so that the kernel closes them first when it dies.
    witnesses = {card.identity: os.open(folder / f"witness.{card.identity}", os.O_RDWR | os.O_CREAT) for card in CARDS}
    lease = take(Wish("gpu-amd", cards, VISIBLE, shares=shares), CARDS, folder)
    if len(lease.cards) != cards or lease.variables["PLUMBLINE_LEASED"].count(",") != cards - 1:
        return HELD_TWICE
    for card in lease.cards:
        try:
            fcntl.lockf(witnesses[card.identity], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return HELD_TWICE
    time.sleep(0.002)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    for file in witnesses.values():
        fcntl.lockf(file, fcntl.LOCK_UN)
    lease.give_back()
    return OVER


@pytest.mark.parametrize("seed", range(3))
def test_nobody_shares_a_card_and_the_dead_leave_nothing_behind(tmp_path, seed) -> None:
    dice = random.Random(seed)
    wanted = [(dice.choice([1, 1, 2, 3, 4]), dice.random() < 0.3) for _ in range(40)]
    running = {}
    ends = []
    for cards, dies in wanted:
        if len(running) == 10:
            child, status = os.wait()
            ends.append((running.pop(child), status))
        running[start(lambda cards=cards, dies=dies: hold(tmp_path, cards, 1, dies))] = dies
    while running:
        child, status = os.wait()
        ends.append((running.pop(child), status))
    assert len(ends) == len(wanted)
    for dies, status in ends:
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if dies else OVER)
    assert len(take(ALL, CARDS, tmp_path).cards) == 4, "all of them are free again"


@pytest.mark.parametrize("seconds_max", [None, 60])
def test_who_wants_all_cards_is_not_overtaken_by_those_who_want_one(tmp_path, seconds_max) -> None:
    first = take(ONE, CARDS, tmp_path)
    order = tmp_path / "order"

    def says(word: str, cards: int) -> int:
        lease = take(Wish("gpu-amd", cards, VISIBLE, seconds_max=seconds_max), CARDS, tmp_path)
        with order.open("a") as file:
            file.write(f"{word}\n")
        lease.give_back()
        return OVER

    everything = start(lambda: says("all", 4), first)
    while not is_locked(tmp_path / "gpu-amd"):
        time.sleep(0.002)
    one = start(lambda: says("one", 1), first)
    assert os.waitpid(one, os.WNOHANG) == (0, 0)
    first.give_back()
    for child in (everything, one):
        os.waitpid(child, 0)
    assert order.read_text() == "all\none\n"


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_cards_are_named_to_libraries_by_what_each_of_them_takes(tmp_path) -> None:
    lease = take(Wish("gpu-nvidia", 2, "CUDA_VISIBLE_DEVICES"), [*CARDS, *OTHERS], tmp_path)
    assert lease.variables == {
        "CUDA_VISIBLE_DEVICES": "GPU-n0,GPU-n1",
        "PLUMBLINE_LEASED": "GPU-n0,GPU-n1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    intel = [Device("gpu-intel", f"0000:{each}b:00.0", "Intel", 2**34, "xe") for each in range(3)]
    held = take(Wish("gpu-intel", 1, "ZE_AFFINITY_MASK"), intel, tmp_path)
    assert held.variables["ZE_AFFINITY_MASK"] == "0"
    second = take(Wish("gpu-intel", 1, "ZE_AFFINITY_MASK"), intel, tmp_path)
    assert second.variables["ZE_AFFINITY_MASK"] == "1"
    assert second.variables["PLUMBLINE_LEASED"] == "0000:1b:00.0"


def test_more_cards_than_there_are_is_said_at_once(tmp_path) -> None:
    with pytest.raises(TooFewError, match="cards: 2 of gpu-nvidia; expected 3 or more"):
        take(Wish("gpu-nvidia", 3, "CUDA_VISIBLE_DEVICES"), [*CARDS, *OTHERS], tmp_path)


def test_a_shared_card_is_shared_by_as_many_as_it_says_and_two_cards_are_had_whole(tmp_path) -> None:
    cards = OTHERS[:2]
    half = Wish("gpu-nvidia", 1, "CUDA_VISIBLE_DEVICES", shares=2)
    shared = [take(half, cards, tmp_path) for _ in range(4)]
    held = [lease.cards[0].identity for lease in shared]
    assert sorted(held) == ["GPU-n0", "GPU-n0", "GPU-n1", "GPU-n1"]
    assert {lease.variables["PYTORCH_ALLOC_CONF"] for lease in shared} == {"per_process_memory_fraction:0.450"}
    both = replace(half, cards=2)
    fifth = start(lambda: len(take(both, cards, tmp_path).cards), *shared)
    for lease in shared[:3]:
        lease.give_back()
    time.sleep(0.1)
    assert os.waitpid(fifth, os.WNOHANG) == (0, 0), "one share of the second card is still held"
    shared[3].give_back()
    assert os.waitstatus_to_exitcode(os.waitpid(fifth, 0)[1]) == 2


def test_of_two_kinds_of_cards_one_is_leased_and_numbers_count_both(tmp_path) -> None:
    found = [replace(card, name="Other", identity=card.identity.removeprefix("GPU-")) for card in CARDS[:2]]
    found = [found[0], *CARDS[2:], found[1]]
    wish = Wish("gpu-amd", 2, VISIBLE, hardware=kind(CARDS[0]))
    assert take(wish, found, tmp_path / "uuid").variables[VISIBLE] == "GPU-2,GPU-3"
    lease = take(replace(wish, hardware=kind(found[0])), found, tmp_path / "numbers")
    assert [card.name for card in lease.cards] == ["Other"] * 2
    assert lease.variables[VISIBLE] == "0,3", "as the libraries number all of them"
    with pytest.raises(TooFewError, match=r"^cards: 2 of gpu-amd of this kind, gfx942, .*; expected 3 or more$"):
        take(replace(wish, cards=3), found, tmp_path)


@pytest.mark.parametrize("waits_at", ["the cards", "the gate"])
def test_cards_that_are_not_free_in_time_are_given_up_and_nothing_stays_held(tmp_path, waits_at) -> None:
    first = take(ONE, CARDS, tmp_path)
    wish = replace(ALL, seconds_max=0.3)
    gate = start(lambda: take(ALL, CARDS, tmp_path).give_back() or OVER, first) if waits_at == "the gate" else None
    while gate and not is_locked(tmp_path / "gpu-amd"):
        time.sleep(0.002)
    began = time.monotonic()
    instead = "others came before it" if gate else "3 came free"
    with pytest.raises(HeldError, match=rf"^cards: 4 of gpu-amd were not free within 0.3 s, {instead}; .* hint: "):
        take(wish, CARDS, tmp_path)
    assert 0.2 < time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    if gate is None:
        assert len(take(replace(ALL, cards=3), CARDS, tmp_path).cards) == 3, "the three that it had came back"
    first.give_back()
    if gate:
        assert os.waitstatus_to_exitcode(os.waitpid(gate, 0)[1]) == OVER


def test_a_test_waits_for_half_of_its_time_and_says_that_it_was_not_the_code(tmp_path) -> None:
    asks = {"PLUMBLINE_ACCELERATOR": "gpu-amd", "PLUMBLINE_CARDS": "1", "PLUMBLINE_VISIBLE": VISIBLE}
    assert asked_in({**asks, "TEST_TIMEOUT": "60"}) == replace(ONE, seconds_max=30)
    assert asked_in({**asks, "PLUMBLINE_HARDWARE": "farm:1"}) == ONE
    assert asked_in({**asks, "PLUMBLINE_HARDWARE": kind(CARDS[0])}) == replace(ONE, hardware=kind(CARDS[0]))
    with pytest.raises(LeaseError, match="PLUMBLINE_CARD_SHARES: 9; expected 1 to 8"):
        asked_in({**asks, "PLUMBLINE_CARD_SHARES": "9"})


def test_a_command_becomes_the_holder_and_tells_its_children_which_cards_they_have(tmp_path) -> None:
    search = nvidia_smi(tmp_path / "bin", *(f"GPU-{each}, NVIDIA L4, 23034, 570.86" for each in range(2)))
    asks = {"PLUMBLINE_ACCELERATOR": "gpu-nvidia", "PLUMBLINE_CARDS": "1", "PLUMBLINE_VISIBLE": "CUDA_VISIBLE_DEVICES"}
    environment = {
        **os.environ,
        **asks,
        "PATH": f"{search}:{os.environ['PATH']}",
        "PLUMBLINE_LEASES": str(tmp_path / "leases"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    inner = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    # The lease of a lease is the first one: it is handed down, not taken twice.
    command = [sys.executable, "-m", "tools.devices.lease"]
    done = subprocess.run([*command, *command, *inner], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "GPU-0\n"), done.stderr
    environment["PLUMBLINE_CARDS"] = "3"
    done = subprocess.run([*command, *inner], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_CODE, "lease: cards: 2 of gpu-nvidia; expected 3 or more\n")


def test_the_cpu_leases_nothing() -> None:
    assert asked_in({"PLUMBLINE_ACCELERATOR": "cpu"}) is None
    assert asked_in({}) is None
