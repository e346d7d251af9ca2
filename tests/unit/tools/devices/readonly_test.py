"""Leases of an action on a worker, which sees the folder of the lock files and can write nothing there."""

import os
import subprocess
import sys
from pathlib import Path

from tools.devices.detect import Device
from tools.devices.lease import SHARES_MAX, LeaseError, Wish, prepare, take

CARDS = [Device("gpu-amd", f"GPU-{each}", "gfx942", 2**37, "6.12") for each in range(4)]
ALONE = ("unshare", "--user", "--map-root-user", "--mount")
OTHER = Device("gpu-nvidia", "GPU-n", "L4", 2**34, "570")


def takes(folder: Path) -> None:
    """Prints how many cards it has, and what it is told of one whose files nobody made."""
    print(len(take(Wish("gpu-amd", 4, "V", shares=SHARES_MAX), CARDS, folder).cards))
    try:
        take(Wish("gpu-nvidia", 1, "V"), [OTHER], folder)
    except LeaseError as error:
        print(error)


def test_files_that_the_worker_made_are_held_and_none_is_made(tmp_path) -> None:
    prepare(CARDS, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"gpu-amd", *(f"{card.identity}.{share}" for card in CARDS for share in range(SHARES_MAX))}
    # Not even root may write what is mounted read-only.
    mount = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}"
    code = f"import pathlib; from {__name__} import takes; takes(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [*ALONE, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cards, refused = done.stdout.splitlines()
    assert cards == "4"
    assert refused.startswith(
        f"lease: {tmp_path}/gpu-nvidia cannot be opened (Read-only file system); expected a file."
    )
