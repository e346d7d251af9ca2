"""Machines with cards that are not there: what kernel drivers publish, and programs that speak as the makers' do."""

from pathlib import Path


def write(root: Path, path: str, text: str) -> None:
    """Makes one file of a machine, with the folders above it."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def nvidia_smi(folder: Path, *lines: str, code: int = 0) -> Path:
    """A folder for PATH in which nvidia-smi prints these lines and leaves with this code."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n")
    program.chmod(0o755)
    return folder


def amd(root: Path, cards: int, reachable: int | None = None, gib: int = 192, device_id: int = 0x74A1) -> Path:
    """A root with a processor and so many cards, as amdgpu's compute driver shows them."""
    nodes = "sys/class/kfd/kfd/topology/nodes"
    write(root, f"{nodes}/0/properties", "cpu_cores_count 64\nsimd_count 0\ndrm_render_minor 0\n")
    write(root, f"{nodes}/0/mem_banks/0/properties", "heap_type 0\nsize_in_bytes 99\n")
    write(root, "sys/module/amdgpu/version", "6.12.12\n")
    for card in range(cards):
        # Node 10 comes after node 2, as numbers do.
        node = f"{nodes}/{card + 1 if card < 2 else card + 8}"
        said = f"simd_count 304\ndrm_render_minor {128 + card}\nunique_id {0xABC0 + card}\n"
        said += f"location_id {256 * card}\ndomain 0\nvendor_id 4098\ndevice_id {device_id}\n"
        write(root, f"{node}/properties", said)
        write(root, f"{node}/name", "gfx942\n")
        write(root, f"{node}/mem_banks/0/properties", f"heap_type 1\nsize_in_bytes {gib * 2**30}\nflags 0\n")
        if reachable is None or card < reachable:
            write(root, f"dev/dri/renderD{128 + card}", "")
    return root


def intel(root: Path) -> Path:
    """A root with two cards that have memory of their own, and the graphics inside its processor."""
    for minor, (address, memory) in enumerate([("0000:9a:00.0", 48), ("0000:1b:00.0", 48), ("0000:00:02.0", 0)]):
        card = f"sys/devices/pci/{address}"
        write(root, f"{card}/vendor", "0x8086\n")
        write(root, f"{card}/device", "0x0bd5\n")
        if memory:
            write(root, f"{card}/tile0/physical_vram_size_bytes", f"{hex(memory * 2**30)}\n")
        (root / "sys/bus/pci/drivers/xe").mkdir(parents=True, exist_ok=True)
        (root / card / "driver").symlink_to(root / "sys/bus/pci/drivers/xe")
        node = root / f"sys/class/drm/renderD{128 + minor}"
        node.mkdir(parents=True)
        (node / "device").symlink_to(root / card)
        write(root, f"dev/dri/renderD{128 + minor}", "")
    return root
