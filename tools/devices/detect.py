"""The accelerator cards that a process of this machine can reach: one probe for each maker, the standard library alone.

    python detect.py [ACCELERATOR]...       prints them as JSON, which is how @plumbline_host asks; it names the
                                            accelerators that there is a torch for

A card that only shows is not counted: in a container the kernel lists every card of the machine, and the device file is
what says which were handed out. Looking makes no context, so it costs no memory on a card.

The NVIDIA probe asks the driver's own program; the other two read what the kernel's drivers publish below /sys.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True)
class Device:
    """One card."""

    accelerator: str
    """Its word in tools/bazel/accelerators.bzl."""
    identity: str
    """What no other card has, and no restart changes: a UUID, or the PCI address where the driver gives none."""
    name: str
    memory_bytes: int
    driver: str


def devices(root: Path = Path("/"), search: str | None = None) -> list[Device]:
    """Every card in reach, in the order in which its maker's libraries number them.

    Args:
        root: where /sys, /proc and /dev are.
        search: where the makers' programs are, as in PATH; None for this process's own and the usual places.
    """
    if search is None:
        search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/bin", "/usr/local/bin"])
    return [device for probe in PROBES.values() for device in probe(root, search)]


def _nvidia(_root: Path, search: str) -> Iterator[Device]:
    program = shutil.which("nvidia-smi", path=search)
    if program is None:
        return
    asked = [program, "--query-gpu=uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in told.stdout.splitlines() if told.returncode == 0 else ():
        parts = [each.strip() for each in line.split(",")]
        # The driver writes [N/A] where a card cannot say; one whose memory nobody knows is of no use.
        if len(parts) == 4 and parts[2].isdigit():
            yield Device("gpu-nvidia", parts[0], parts[1], int(parts[2]) * MIB, parts[3])


def _amd(root: Path, _search: str) -> Iterator[Device]:
    """The nodes of the compute driver that have vector units; the others are processors."""
    driver = _version(root, "amdgpu")
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    for file in sorted(nodes, key=lambda file: int(file.parent.name)):
        said = dict(line.split(maxsplit=1) for line in _text(file).splitlines() if " " in line)
        if int(said.get("simd_count", 0)) == 0 or not _reachable(root, f"renderD{said.get('drm_render_minor', 0)}"):
            continue
        banks = [_text(each) for each in file.parent.glob("mem_banks/*/properties")]
        # Heaps 1 and 2 are the card's own memory; 0 is the host's.
        own = [each for each in banks if re.search(r"^heap_type [12]$", each, re.MULTILINE)]
        memory = sum(
            int(found[1]) for each in own if (found := re.search(r"^size_in_bytes (\d+)$", each, re.MULTILINE))
        )
        unique = int(said.get("unique_id", 0))
        identity = f"GPU-{unique:016x}" if unique else _pci_of_location(said)
        # Cards of one architecture share its name, gfx942; the number on the bus tells an MI300X from an MI325X.
        name = f"{_text(file.parent / 'name').strip() or 'AMD'} {int(said.get('device_id', 0)):#06x}"
        yield Device("gpu-amd", identity, name, memory, driver)


def _pci_of_location(said: dict[str, str]) -> str:
    location, domain = int(said.get("location_id", 0)), int(said.get("domain", 0))
    return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def _intel(root: Path, _search: str) -> Iterator[Device]:
    """Cards with memory of their own, by PCI address; the graphics inside a processor has none."""
    found = []
    for node in (root / "sys/class/drm").glob("renderD*"):
        card = node / "device"
        if _text(card / "vendor").strip() != "0x8086" or not _reachable(root, node.name):
            continue
        sizes = [*card.glob("tile*/physical_vram_size_bytes"), *card.glob("drm/card*/lmem_total_bytes")]
        memory = sum(int(_text(each).strip() or "0", 0) for each in sizes)
        if memory:
            module = (card / "driver").resolve().name
            address = card.resolve().name
            model = _text(card / "device").strip()
            found.append(Device("gpu-intel", address, f"Intel {model}", memory, f"{module} {_version(root, module)}"))
    yield from sorted(found, key=lambda each: each.identity)


PROBES: dict[str, Callable[[Path, str], Iterator[Device]]] = {
    "gpu-amd": _amd,
    "gpu-intel": _intel,
    "gpu-nvidia": _nvidia,
}
"""Accelerator -> how its cards are found."""


def _reachable(root: Path, name: str) -> bool:
    return os.access(root / "dev/dri" / name, os.R_OK | os.W_OK)


def _version(root: Path, module: str) -> str:
    """The version of a kernel driver: its own, or the kernel's that it came with."""
    return _text(root / "sys/module" / module / "version").strip() or os.uname().release


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def kind(card: Device) -> str:
    """Model, memory and driver of a card: what a result was made on, as far as it can change the result."""
    return f"{card.name}, {card.memory_bytes / GIB:.0f} GiB, driver {card.driver}"


def of_one_kind(cards: list[Device]) -> list[Device]:
    """The cards that tests of one accelerator run on: of several kinds, that of the most cards, then of most memory.

    A result is filed under the kind of card that it was made on, so no test may have now one and now another.
    """
    counts = Counter(kind(each) for each in cards)
    chosen = max(cards, key=lambda each: (counts[kind(each)], each.memory_bytes, kind(each)), default=None)
    return [each for each in cards if chosen and kind(each) == kind(chosen)]


def fingerprint(cards: list[Device]) -> str:
    """The one kind that some cards of an accelerator are used as, or ""."""
    return next((kind(each) for each in of_one_kind(cards)), "")


def default(cards: list[Device], resolved: Collection[str]) -> str:
    """The accelerator whose tests run where nobody names one: of those with a torch, that of the most cards, or ""."""
    counts = {name: len(own) for name, own in by_accelerator(cards).items() if name in resolved}
    return min(counts, key=lambda each: (-counts[each], each), default="")


def by_accelerator(cards: list[Device]) -> dict[str, list[Device]]:
    """Accelerator -> its cards of the one kind that is used."""
    return {
        name: of_one_kind([each for each in cards if each.accelerator == name])
        for name in sorted({each.accelerator for each in cards})
    }


def hint(cards: list[Device], resolved: Collection[str]) -> str:
    """What to do about cards that no test can run on, or ""."""
    idle = sorted({each.accelerator for each in cards} - set(resolved))
    told = [f"cards of {', '.join(idle)}, and no lock with a torch for them. hint: docs/pools.md"] if idle else []
    used = by_accelerator(cards)
    for other in sorted({kind(each) for each in cards if each not in used[each.accelerator]}):
        told.append(f"cards that no test is given: {other}; the results of a machine are of one kind of card")
    return "; ".join(told)


def main(resolved: list[str]) -> int:
    """Prints the cards, a fingerprint for each accelerator, and which one is the default."""
    found = devices()
    used = by_accelerator(found)
    print(
        json.dumps(
            {
                "cards": [asdict(each) for each in found],
                "counts": {name: len(own) for name, own in used.items()},
                "default": default(found, resolved),
                "fingerprints": {name: fingerprint(own) for name, own in used.items()},
                "hint": hint(found, resolved),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
