"""The checked-in locks are fresh and whole; no network is needed to know."""

import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools.bazel.starlark import starlark
from tools.pools.table import TABLE
from tools.pypi.lock import LOCKS, VENDOR, Lock, accelerator_lock, blocks, header, names, resolve, unresolved

ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(\[[\w,-]+\])?==(?P<version>\S+) \\$")


def requirements(text: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def read(path: str) -> str:
    return pathlib.Path(path).read_text()


RESOLVED = [lock for name, lock in LOCKS.items() if read(lock.lock) != unresolved(name)]
"""All but those whose one line says that nobody could reach their index yet."""


def test_only_the_lock_whose_torch_is_out_of_reach_may_be_unresolved() -> None:
    assert {name for name, lock in LOCKS.items() if lock not in RESOLVED} <= {"rocm"}


def test_a_lock_names_the_requirements_it_was_resolved_from() -> None:
    for lock in RESOLVED:
        assert read(lock.lock).startswith(header(lock.requirements, read(lock.requirements))), (
            f"{lock.lock} is stale. hint: ./bazelw run //tools/pypi:lock"
        )


def test_every_requirement_is_met_by_the_version_that_its_lock_pins() -> None:
    for lock in [each for each in RESOLVED if not each.torch]:
        entries = (ENTRY.match(entry.splitlines()[0]) for entry in blocks(read(lock.lock)).values())
        pins = {entry["name"].lower(): Version(entry["version"]) for entry in entries}
        unmet = [
            r
            for r in requirements(read(lock.requirements))
            if not r.specifier.contains(pins[r.name.lower()], prereleases=True)
        ]
        assert unmet == []


def test_every_entry_is_pinned_and_hashed() -> None:
    for lock in RESOLVED:
        for name, entry in blocks(read(lock.lock)).items():
            assert ENTRY.match(entry.splitlines()[0]), f"{lock.lock}: {name}"
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), f"{lock.lock}: {name} has no hash"


def test_torch_is_the_cpu_build() -> None:
    assert "torch==2.13.0+cpu" in blocks(read("requirements_lock.txt"))["torch"]
    assert not [name for name in blocks(read("requirements_lock.txt")) if name.startswith(("nvidia-", "triton"))]


def test_a_lock_with_a_base_repeats_nothing_of_it() -> None:
    for lock in RESOLVED:
        if lock.base:
            # Another build of torch is what the lock of an accelerator is for.
            assert names(read(lock.lock)) & names(read(lock.base)) == ({"torch"} if lock.torch else set())


def test_the_locks_of_accelerators_differ_from_the_cpus_by_torch_and_their_makers_packages_alone() -> None:
    for lock in [each for each in RESOLVED if each.torch]:
        entries = blocks(read(lock.lock))
        assert [name for name in entries if not VENDOR.fullmatch(name)] == []
        version = entries["torch"].splitlines()[0].rstrip(" \\").partition("==")[2]
        assert blocks(read("requirements_lock.txt"))["torch"].startswith(f"torch=={version.partition('+')[0]}+cpu")
    assert not VENDOR.fullmatch("transformers")


def test_the_triton_whose_kernels_are_interpreted_is_the_one_that_compiles_them_for_nvidia() -> None:
    interpreted, compiling = (blocks(read(LOCKS[name].lock))["triton"] for name in ("kernels", "cuda"))
    assert interpreted.splitlines()[0] == compiling.splitlines()[0]


OLDEST_DRIVERS = {"12": "525", "13": "580"}
"""By the major version of CUDA: docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility."""


def test_the_oldest_driver_of_nvidia_is_that_of_the_cuda_in_its_lock() -> None:
    row = starlark(pathlib.Path(TABLE).read_text())["ACCELERATORS"]["gpu-nvidia"]
    (major,) = set(re.findall(r"^cuda-toolkit\S*==(\d+)", pathlib.Path(row.lock).read_text(), re.MULTILINE))
    assert row.driver == OLDEST_DRIVERS[major]


def test_accelerators_of_the_table_name_the_locks_that_are_resolved_by_their_configs() -> None:
    rows = starlark(pathlib.Path(TABLE).read_text())["ACCELERATORS"]
    assert {row.config or "cpu": row.lock for row in rows.values()} == {
        name: lock.lock for name, lock in LOCKS.items() if lock.torch or name == "cpu"
    }
    chosen = re.findall(
        r'name = "pypi_(\w+)",.*\n.*\n    constraint = "@@//tools/bazel:([\w-]+)"', read("MODULE.bazel")
    )
    assert dict(chosen) == {row.config: accelerator for accelerator, row in rows.items() if row.cards}


COMPILED = """\
networkx==3.6.1 \\
    --hash=sha256:0
    # via torch
nvidia-nccl-cu13==2 \\
    --hash=sha256:1
    # via torch
torch===2.13.0 \\
    --hash=sha256:2
    # via -r torch.in
"""


def test_the_lock_of_an_accelerator_is_resolved_against_the_cpus_and_holds_what_that_lacks(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "in").write_text("torch==2.13.0+cpu\n")
    (tmp_path / "cpu").write_text("networkx[default]==3.6.1 \\\n    --hash=x\ntorch==2.13.0+cpu \\\n    --hash=y\n")
    seen = {}

    def compiles(root, wanted, output, constraint, index) -> None:
        seen.update(wanted=(root / wanted).read_text(), constraint=constraint.read_text(), index=index)
        output.write_text(COMPILED)

    monkeypatch.setattr("tools.pypi.lock._compile", compiles)
    lock = Lock("in", "cuda", base="cpu", torch="torch===2.13.0", index="https://example.invalid")
    text = resolve(tmp_path, lock, upgrade=False)
    assert seen == {
        "wanted": "torch===2.13.0\n",
        "constraint": "networkx==3.6.1\n",
        "index": "https://example.invalid",
    }
    assert text.startswith(header("in", "torch==2.13.0+cpu\n"))
    assert blocks(text)["torch"] == "torch==2.13.0 \\\n    --hash=sha256:2"
    assert list(blocks(text)) == ["nvidia-nccl-cu13", "torch"]


def test_the_lock_of_an_accelerator_may_bring_nothing_that_its_maker_did_not_make() -> None:
    with pytest.raises(ValueError, match=r"requirements_lock_cuda\.txt: networkx; expected torch and what comes from"):
        accelerator_lock(LOCKS["cuda"], "", set(), COMPILED)


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
