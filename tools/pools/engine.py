"""Fetches the programs of the local cluster, without root and without touching the system.

BuildBox, nginx and bubblewrap are Debian's, unpacked as tools/bazel/provision.py unpacks Bazel: apt itself downloads
and verifies them from the mirror that the machine already uses. BuildGrid and PostgreSQL are wheels with hashes, in a
virtual environment. Whatever is half made has no READY and is made anew.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bazel.provision import Apt, ProvisionError, is_elf, set_loader, unpack

PACKAGES = ("buildbox", "bubblewrap", "fuse3", "libfaketime", "nginx", "patchelf")
PROGRAMS = (
    *("usr/bin/buildbox-casd", "usr/bin/buildbox-fuse", "usr/bin/buildbox-run-bubblewrap", "usr/bin/buildbox-worker"),
    *("usr/bin/bwrap", "usr/bin/fusermount3", "usr/sbin/nginx"),
)
REVISION = 1
"""Raised when something else is made of the same packages."""


class EngineError(Exception):
    """What could not be fetched, with a hint."""


def say(text: str) -> None:
    """Prints one line of progress."""
    print(f"pools: {text}", flush=True)


def cache() -> Path:
    """The directory that bazelw uses as well."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PLUMBLINE_CACHE") or base / "plumbline")


def interpreter() -> Path:
    """The CPython behind the environment that this process runs in."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))


def key(lock: str) -> str:
    """What tells one engine from another: what is fetched, and the interpreter that wheels are chosen for."""
    text = f"{REVISION} {' '.join(PACKAGES)} {interpreter()} {sys.version} {lock}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def engine(lock: Path) -> Path:
    """The directory of the programs; they are fetched if they are not there.

    Raises:
        EngineError: they cannot be.
    """
    text = lock.read_text(encoding="utf-8")
    root = cache() / f"engine-{key(text)}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{root.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ready = root / "READY"
        # Debian's programs and the environment hold the path they were made at.
        if ready.is_file() and ready.read_text(encoding="utf-8").strip() == str(root):
            return root
        started = time.monotonic()
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        try:
            _debian(root)
            _wheels(root / "venv", lock)
        except (ProvisionError, OSError, subprocess.SubprocessError) as error:
            told = str(error).partition(" hint:")[0]
            raise EngineError(
                f"{told} hint: apt-get, dpkg-deb, Debian's mirror and a package index have to be in reach"
            ) from error
        ready.write_text(f"{root}\n", encoding="utf-8")
        say(f"the programs are ready in {root} ({time.monotonic() - started:.0f} s)")
    return root


def _debian(root: Path) -> None:
    for command in ("apt-get", "dpkg-deb"):
        if not shutil.which(command):
            raise ProvisionError(f"no `{command}`, which fetches BuildBox, nginx and bubblewrap.")
    with tempfile.TemporaryDirectory(prefix="plumbline-apt-") as scratch:
        apt = Apt(Path(scratch))
        apt.update()
        names = apt.closure(PACKAGES)
        say(f"downloading BuildBox, nginx, bubblewrap and their libraries: {len(names)} Debian packages, about 30 MB")
        unpack(apt.fetch(names), root)
    libraries = next(root.glob("usr/lib/*/libc.so.6")).parent
    set_loader(root, root, filter(is_elf, (root / name for name in PROGRAMS)), str(libraries))


def _wheels(venv: Path, lock: Path) -> None:
    say("installing BuildGrid and PostgreSQL: 60 wheels, about 90 MB")
    subprocess.run([interpreter(), "-I", "-m", "venv", "--without-pip", venv], check=True)
    pip = importlib.util.find_spec("pip")
    if pip is None or not pip.submodule_search_locations:
        raise EngineError("pip is not among the wheels of this program. hint: ./bazelw run //tools/pools:up")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--ignore-installed", "--only-binary=:all:"]
    # With nothing of this program in sight: what it brings along would pass for installed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [venv / "bin/python", pip.submodule_search_locations[0], "install", *options, "--require-hashes", "-r", lock],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ProvisionError("pip: " + "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:]))
