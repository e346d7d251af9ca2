"""The checked-in locks are fresh and whole; no network is needed to know."""

import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools.pypi.lock import LOCKS, blocks, header, names

ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(\[[\w,-]+\])?==(?P<version>\S+) \\$")


def requirements(text: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def read(path: str) -> str:
    return pathlib.Path(path).read_text()


def test_a_lock_names_the_requirements_it_was_resolved_from() -> None:
    for lock in LOCKS.values():
        assert read(lock.lock).startswith(header(lock.requirements, read(lock.requirements))), (
            f"{lock.lock} is stale. hint: ./bazelw run //tools/pypi:lock"
        )


def test_every_requirement_is_met_by_the_version_that_its_lock_pins() -> None:
    for lock in LOCKS.values():
        entries = (ENTRY.match(entry.splitlines()[0]) for entry in blocks(read(lock.lock)).values())
        pins = {entry["name"].lower(): Version(entry["version"]) for entry in entries}
        unmet = [
            r
            for r in requirements(read(lock.requirements))
            if not r.specifier.contains(pins[r.name.lower()], prereleases=True)
        ]
        assert unmet == []


def test_every_entry_is_pinned_and_hashed() -> None:
    for lock in LOCKS.values():
        for name, entry in blocks(read(lock.lock)).items():
            assert ENTRY.match(entry.splitlines()[0]), f"{lock.lock}: {name}"
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"{lock.lock}: {name} has no hash"


def test_torch_is_the_cpu_build() -> None:
    assert "torch==2.13.0+cpu" in blocks(read("requirements_lock.txt"))["torch"]
    assert not [name for name in blocks(read("requirements_lock.txt")) if name.startswith(("nvidia-", "triton"))]


def test_a_lock_with_a_base_repeats_nothing_of_it() -> None:
    for lock in LOCKS.values():
        if lock.base:
            assert not names(read(lock.lock)) & names(read(lock.base))


@pytest.mark.parametrize("line", ["numpy>=2", "NumPy[extra]>=2", "numpy==2.0 \\"])
def test_names_are_compared_as_indexes_compare_them(line: str) -> None:
    assert names(f"# numpy-stubs\n{line}\n    # via pandas\n") == {"numpy"}
    assert names("typing_extensions\nruamel.yaml") == {"typing-extensions", "ruamel-yaml"}


def test_another_requirements_file_gives_another_header() -> None:
    assert header("requirements.in", "torch\n") != header("requirements.in", "torch>=2\n")


def test_blocks_are_whole_entries_without_the_headings_between_them() -> None:
    lock = "# head\na==1 \\\n    --hash=sha256:0\n    # via b\nB_c[d]==2 \\\n    --hash=sha256:1\n"
    lock += "\n# The following packages\npip==3 \\\n    --hash=x\n"
    assert blocks(lock) == {
        "a": "a==1 \\\n    --hash=sha256:0\n    # via b",
        "b-c": "B_c[d]==2 \\\n    --hash=sha256:1",
        "pip": "pip==3 \\\n    --hash=x",
    }
