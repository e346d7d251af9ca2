"""How an unpacked wheel becomes one importable directory."""

import json
import pathlib
import shutil
import subprocess
import sys
from importlib.metadata import Distribution

import pytest

from tools.pypi import unpack


@pytest.fixture
def fetched(tmp_path: pathlib.Path) -> pathlib.Path:
    """A wheel as rules_python leaves it: two modules, a program, metadata, and bytecode of another Python."""
    folder = tmp_path / "fetched"
    package = folder / "site-packages" / "plumb"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("from plumb.line import straight\n")
    (package / "line.py").write_text("straight = True\n")
    (package / "__pycache__" / "line.cpython-39.pyc").write_bytes(b"stale")
    (folder / "bin").mkdir()
    (folder / "bin" / "plumb").write_text("#!/bin/sh\n")
    metadata = folder / "site-packages" / "plumb-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: plumb\nVersion: 1.0\n"
        "Requires-Dist: bob>=2\nRequires-Dist: level; extra == 'spirit'\nRequires-Dist: mac; sys_platform == 'darwin'\n"
        "Requires-Dist: plumb[spirit]; extra == 'all'\n"
    )
    return folder


def unpacked(
    fetched: pathlib.Path,
    target: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    extras: list[str],
    libraries: list[pathlib.Path] | None = None,
) -> list[str]:
    unpack.main(fetched, target / "site-packages", extras, libraries or [])
    return json.loads(capsys.readouterr().out)


def test_the_directory_is_importable_and_its_bytecode_is_used_unchecked(fetched, tmp_path, capsys) -> None:
    unpacked(fetched, tmp_path / "new", capsys, [])
    site = tmp_path / "new" / "site-packages"
    (site / "plumb" / "line.py").unlink()
    (site / "plumb" / "line.py").write_text(
        "straight = False\n"
    )  # Unchecked: bytecode wins over a source that has changed.
    code = "import plumb.line; print(plumb.straight, plumb.line.__file__, plumb.line.__cached__)"
    output = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    ).stdout
    assert output.split()[0] == "True"
    assert output.split()[1] == str(site / "plumb" / "line.py")


def test_bytecode_that_came_along_is_left_out(fetched, tmp_path, capsys) -> None:
    unpacked(fetched, tmp_path / "new", capsys, [])
    names = {path.name for path in (tmp_path / "new").rglob("*.pyc")}
    assert names == {f"__init__.{sys.implementation.cache_tag}.pyc", f"line.{sys.implementation.cache_tag}.pyc"}


def test_programs_go_where_their_modules_look_for_them(fetched, tmp_path, capsys) -> None:
    unpacked(fetched, tmp_path / "new", capsys, [])
    assert (tmp_path / "new" / "site-packages" / "bin" / "plumb").exists()


def test_files_are_hard_links(fetched, tmp_path, capsys) -> None:
    unpacked(fetched, tmp_path / "new", capsys, [])
    ours = tmp_path / "new" / "site-packages" / "plumb" / "line.py"
    assert ours.samefile(fetched / "site-packages" / "plumb" / "line.py")


@pytest.mark.parametrize(("extras", "expected"), [([], ["bob"]), (["spirit"], ["bob", "level"])])
def test_requirements_are_those_that_apply_here(fetched, tmp_path, capsys, extras, expected) -> None:
    assert unpacked(fetched, tmp_path / "new", capsys, extras) == expected


def test_a_wheel_does_not_require_itself(fetched, tmp_path, capsys) -> None:
    assert unpacked(fetched, tmp_path / "new", capsys, ["all"]) == ["bob"]


def test_the_digest_is_equal_for_equal_wheels_and_differs_for_any_other_byte(fetched, tmp_path, capsys) -> None:
    digests = []
    for name in ("a", "b", "c"):
        if name == "c":
            (fetched / "site-packages" / "plumb" / "line.py").write_text("straight = None\n")
        unpacked(fetched, tmp_path / name, capsys, [])
        digests.append((tmp_path / name / "CONTENT").read_text())
    assert digests[0] == digests[1] != digests[2]


def test_the_directory_has_a_fixed_timestamp(fetched, tmp_path, capsys) -> None:
    unpacked(fetched, tmp_path / "new", capsys, [])
    assert (tmp_path / "new" / "site-packages").stat().st_mtime == unpack.FIXED_TIME


def test_a_wheel_in_this_very_test_has_the_digest_that_keys_it() -> None:
    site = next(
        pathlib.Path(entry) for entry in sys.path if "pypi__packaging" in entry and entry.endswith("site-packages")
    )
    assert unpack.digest(site) == site.with_name("CONTENT").read_text().strip()
    assert Distribution.at(next(site.glob("*.dist-info"))).name == "packaging"


@pytest.fixture
def torch_and_others(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """As rules_python leaves them: torch with a library of its own, and three wheels of which two install some."""
    files = {
        "torch/site-packages/torch/lib/libtorch.so": "torch's",
        "torch/site-packages/torch-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.0\n",
        "sycl/data/lib/libsycl.so.9": "sycl's",
        "sycl/data/share/doc": "of no use here",
        "mpi/data/lib/mpi/hooks.so": "mpi's",
        "zes/site-packages/zes.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in ("torch", "sycl", "mpi", "zes")]


def test_libraries_that_an_environment_would_share_lie_beside_torchs(torch_and_others, tmp_path, capsys) -> None:
    first, *others = torch_and_others
    unpacked(first, tmp_path / "new", capsys, [], others)
    lib = tmp_path / "new" / "site-packages" / "torch" / "lib"
    found = {str(path.relative_to(lib)): path.read_text() for path in lib.rglob("*") if path.is_file()}
    assert found == {"libtorch.so": "torch's", "libsycl.so.9": "sycl's", "mpi/hooks.so": "mpi's"}
    assert (lib / "libsycl.so.9").samefile(others[0] / "data" / "lib" / "libsycl.so.9")


def test_a_library_that_is_there_already_is_not_taken_for_another(torch_and_others, tmp_path, capsys) -> None:
    first, *others = torch_and_others
    (others[1] / "data" / "lib" / "libtorch.so").write_text("another")
    with pytest.raises(shutil.Error, match=r"libtorch\.so: two wheels bring it"):
        unpacked(first, tmp_path / "new", capsys, [], others)
