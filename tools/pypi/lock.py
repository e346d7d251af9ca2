"""`./bazelw run //tools/pypi:lock`: resolves every requirements.in into the lock beside it, with hashes.

pip-tools resolves, through the machine's own pip set-up, so that a private index or a directory of wheels works as it
does for pip. A lock with a base leaves out what the base already pins, and what its requirements.in does not name. The
lock of an accelerator is one of these: another build of torch, and what that brings along from the maker of the cards.
All else is the cpu's, so that no lane can differ from another by anything but its vendor.

The first line of a lock holds the digest of the requirements.in it came from: a test without network compares them.
"""

import argparse
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from tools.bazel.provision import TORCH_INDEX, torch_index_reachable


@dataclass(frozen=True)
class Lock:
    """One requirements.in and the lock it resolves to; paths from the root of the repository."""

    requirements: str
    lock: str
    base: str | None = None
    torch: str | None = None
    """For an accelerator, the build of torch; three = tell 2.13.0 from 2.13.0+cpu."""
    index: str | None = None
    """Where that build is, beside the machine's own indexes; tools/pypi/*/MODULE.bazel name it too."""


VENDOR = re.compile(
    r"torch|triton(-rocm|-xpu)?|pytorch-triton(-rocm|-xpu)?|cuda-(bindings|pathfinder|toolkit)|nvidia-.*|"
    r"intel-.*|dpcpp-cpp-rt|impi-rt|mkl|onemkl-.*|oneccl(-devel)?|tbb|tcmlib|umf|pyelftools|pyzes"
)
"""Names of what the lock of an accelerator may hold."""

LOCKS = {
    "cpu": Lock("requirements.in", "requirements_lock.txt"),
    # On the package index, torch is the CUDA build.
    "cuda": Lock("requirements.in", "requirements_lock_cuda.txt", base="requirements_lock.txt", torch="torch===2.13.0"),
    "rocm": Lock(
        "requirements.in",
        "requirements_lock_rocm.txt",
        base="requirements_lock.txt",
        torch="torch==2.13.0+rocm7.2",
        index="https://download.pytorch.org/whl/rocm7.2",
    ),
    "xpu": Lock(
        "requirements.in",
        "requirements_lock_xpu.txt",
        base="requirements_lock.txt",
        torch="torch==2.13.0+xpu",
        index="https://download.pytorch.org/whl/xpu",
    ),
    "quickstart": Lock(
        "training/quickstart/requirements.in", "training/quickstart/requirements_lock.txt", base="requirements_lock.txt"
    ),
    "kernels": Lock(
        "training/models/kernels/requirements.in",
        "training/models/kernels/requirements_lock.txt",
        base="requirements_lock.txt",
    ),
    "benchmark": Lock(
        "tests/benchmark/requirements.in", "tests/benchmark/requirements_lock.txt", base="requirements_lock.txt"
    ),
    # No wheel of a target: the local cluster installs it by itself.
    "pools": Lock("tools/pools/requirements.in", "tools/pools/requirements_lock.txt"),
    "peers": Lock(
        "tests/benchmark/speed/requirements.in",
        "tests/benchmark/speed/requirements_lock.txt",
        base="requirements_lock.txt",
    ),
    "schemas": Lock(
        "tools/pools/schemas/requirements.in", "tools/pools/schemas/requirements_lock.txt", base="requirements_lock.txt"
    ),
    "harness": Lock(
        "tests/benchmark/harness/requirements.in",
        "tests/benchmark/harness/requirements_lock.txt",
        base="requirements_lock.txt",
    ),
}


def normalised(name: str) -> str:
    """The name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(text: str) -> set[str]:
    """The normalised names of the distributions that a requirements file or a lock names at the start of its lines."""
    return {normalised(match) for match in re.findall(r"^([A-Za-z0-9][\w.-]*)", text, re.MULTILINE)}


def blocks(lock: str) -> dict[str, str]:
    """The entries of a lock, each with its hashes and annotations, by normalised name."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    # pip-tools sets packages that installers use apart under a heading of their own; it would stick to the entry above.
    return {
        normalised(re.split(r"[=\[ ]", entry, maxsplit=1)[0]): entry.split("\n# The following")[0].rstrip()
        for entry in entries
    }


def unresolved(name: str) -> str:
    """What stands in a lock that nobody could resolve yet. Whatever needs its torch is then refused, with this hint."""
    return f"# Not resolved yet: ./bazelw run //tools/pypi:lock -- {name}\n"


def header(requirements: str, text: str) -> str:
    """The first line of a lock that was resolved from `text`, the content of the file `requirements`."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"# {requirements} sha256:{digest}; refresh with ./bazelw run //tools/pypi:lock\n"


def resolve(root: pathlib.Path, lock: Lock, upgrade: bool) -> str:
    """The text of a fresh lock. Packages stay at the versions of the present lock where that is possible."""
    text = (root / lock.requirements).read_text()
    if lock.torch:
        return _resolve_accelerator(root, lock)
    with tempfile.TemporaryDirectory() as scratch:
        output = pathlib.Path(scratch, "lock.txt")
        if not upgrade and (root / lock.lock).exists():
            output.write_text((root / lock.lock).read_text())
        index = TORCH_INDEX if "PIP_EXTRA_INDEX_URL" not in os.environ and torch_index_reachable() else None
        _compile(root, lock.requirements, output, root / lock.base if lock.base else None, index)
        entries = blocks(output.read_text())
    if lock.base:
        wanted = names(text) - names((root / lock.base).read_text())
        entries = {name: entry for name, entry in entries.items() if name in wanted}
    return header(lock.requirements, text) + "".join(f"{entries[name]}\n" for name in sorted(entries))


def _resolve_accelerator(root: pathlib.Path, lock: Lock) -> str:
    """The text of the lock of an accelerator.

    Raises:
        CalledProcessError: its build of torch needs a package of another version than the cpu's.
    """
    base = blocks((root / str(lock.base)).read_text())
    pins = {name: entry.splitlines()[0].rstrip(" \\") for name, entry in base.items() if name != "torch"}
    with tempfile.TemporaryDirectory() as scratch:
        wanted, constraint, output = (pathlib.Path(scratch, name) for name in ("torch.in", "pins.txt", "lock.txt"))
        wanted.write_text(f"{lock.torch}\n")
        # A constraint takes no extras.
        constraint.write_text("".join(re.sub(r"\[.*\]", "", pin) + "\n" for pin in pins.values()))
        _compile(wanted.parent, wanted.name, output, constraint, lock.index)
        return accelerator_lock(lock, (root / lock.requirements).read_text(), set(pins), output.read_text())


def accelerator_lock(lock: Lock, requirements: str, base: set[str], compiled: str) -> str:
    """The lock of an accelerator, from what pip-tools made of its build of torch, without what the cpu's lock has.

    Raises:
        ValueError: it needs a package that VENDOR does not know.
    """
    entries = {name: entry for name, entry in blocks(compiled).items() if name not in base}
    if strangers := sorted(name for name in entries if not VENDOR.fullmatch(name)):
        raise ValueError(
            f"{lock.lock}: {', '.join(strangers)}; expected torch and what comes from the maker of the cards"
        )
    text = header(lock.requirements, requirements)
    for name in sorted(entries):
        # Where it was resolved is nobody's business, and the hashes already tell 2.13.0 from 2.13.0+cpu.
        kept = [line for line in entries[name].splitlines() if "# via -r" not in line]
        text += "\n".join(kept).replace("===", "==") + "\n"
    return text


def _compile(
    root: pathlib.Path, wanted: str, output: pathlib.Path, constraint: pathlib.Path | None, index: str | None
) -> None:
    """Has pip-tools resolve a file below a folder into another."""
    command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--allow-unsafe", "--generate-hashes"]
    command += ["--no-header", "--no-emit-options", "--no-strip-extras", "--output-file", str(output)]
    command += ["--constraint", str(constraint)] if constraint else []
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # Not every launcher hands it to a child.
    environment |= {"PIP_EXTRA_INDEX_URL": index} if index else {}
    subprocess.run([*command, wanted], cwd=root, env=os.environ | environment, check=True)


def main() -> int:
    """Refreshes the named locks, or all of them, in the working tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "locks", nargs="*", help=f"which: {', '.join(LOCKS)} (default: all but rocm and xpu)", metavar="LOCK"
    )
    parser.add_argument("--upgrade", action="store_true", help="move every package to its newest allowed version")
    arguments = parser.parse_args()
    if unknown := set(arguments.locks) - set(LOCKS):
        parser.error(f"no lock named {', '.join(sorted(unknown))}; expected {', '.join(LOCKS)}")
    root = pathlib.Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    # The indexes of AMD's and Intel's builds are not where everybody's are, so these two only by name.
    for name in arguments.locks or [name for name, lock in LOCKS.items() if not lock.index]:
        lock = LOCKS[name]
        print(f"resolving {lock.requirements}; this takes about a minute", flush=True)
        (root / lock.lock).write_text(resolve(root, lock, arguments.upgrade))
        print(f"wrote {lock.lock}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
