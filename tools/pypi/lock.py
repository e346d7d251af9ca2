"""`./bazelw run //tools/pypi:lock`: resolves every requirements.in into the lock beside it, with hashes.

pip-tools resolves, through the machine's own pip set-up, so that a private index or a directory of wheels works as it
does for pip. A lock with a base leaves out what the base already pins, and what its requirements.in does not name.

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


LOCKS = {
    "cpu": Lock("requirements.in", "requirements_lock.txt"),
    "quickstart": Lock(
        "training/quickstart/requirements.in", "training/quickstart/requirements_lock.txt", base="requirements_lock.txt"
    ),
    "benchmark": Lock(
        "tests/benchmark/requirements.in", "tests/benchmark/requirements_lock.txt", base="requirements_lock.txt"
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


def header(requirements: str, text: str) -> str:
    """The first line of a lock that was resolved from `text`, the content of the file `requirements`."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"# {requirements} sha256:{digest}; refresh with ./bazelw run //tools/pypi:lock\n"


def resolve(root: pathlib.Path, lock: Lock, upgrade: bool) -> str:
    """The text of a fresh lock. Packages stay at the versions of the present lock where that is possible."""
    text = (root / lock.requirements).read_text()
    with tempfile.TemporaryDirectory() as scratch:
        output = pathlib.Path(scratch, "lock.txt")
        if not upgrade and (root / lock.lock).exists():
            output.write_text((root / lock.lock).read_text())
        command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--allow-unsafe", "--generate-hashes"]
        command += ["--no-header", "--no-emit-options", "--no-strip-extras", "--output-file", str(output)]
        if lock.base:
            command += ["--constraint", str(root / lock.base)]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # Not every launcher hands it to a child.
        if "PIP_EXTRA_INDEX_URL" not in os.environ and torch_index_reachable():
            environment["PIP_EXTRA_INDEX_URL"] = TORCH_INDEX
        subprocess.run([*command, lock.requirements], cwd=root, env=os.environ | environment, check=True)
        entries = blocks(output.read_text())
    if lock.base:
        wanted = names(text) - names((root / lock.base).read_text())
        entries = {name: entry for name, entry in entries.items() if name in wanted}
    return header(lock.requirements, text) + "".join(f"{entries[name]}\n" for name in sorted(entries))


def main() -> int:
    """Refreshes the named locks, or all of them, in the working tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs="*", help=f"which: {', '.join(LOCKS)} (default: all)", metavar="LOCK")
    parser.add_argument("--upgrade", action="store_true", help="move every package to its newest allowed version")
    arguments = parser.parse_args()
    if unknown := set(arguments.locks) - set(LOCKS):
        parser.error(f"no lock named {', '.join(sorted(unknown))}; expected {', '.join(LOCKS)}")
    root = pathlib.Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    for name in arguments.locks or LOCKS:
        lock = LOCKS[name]
        print(f"resolving {lock.requirements}; this takes about a minute", flush=True)
        (root / lock.lock).write_text(resolve(root, lock, arguments.upgrade))
        print(f"wrote {lock.lock}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
