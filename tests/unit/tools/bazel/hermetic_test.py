"""What a test can reach, asserted from inside one."""

import os
import pathlib
import site
import socket
import subprocess
import sys

import pytest

from tools.bazel.hermetic import CACHE_VARIABLES, OFFLINE, THREAD_VARIABLES, straighten
from tools.devices.check import place

RUNFILES = pathlib.Path(os.environ["TEST_SRCDIR"])
SCRATCH = pathlib.Path(os.environ["TEST_TMPDIR"])


def is_declared(entry: str) -> bool:
    """Whether a place is in the runfiles, or in the archive of a CPython that rules_python fetched and verified."""
    path = pathlib.Path(entry)
    return path.is_relative_to(RUNFILES) or "external" in path.parts


def test_modules_come_from_declared_inputs_and_the_standard_library_alone() -> None:
    library = pathlib.Path(sys.base_prefix, "lib")
    strangers = [entry for entry in sys.path if not is_declared(entry)]
    assert [entry for entry in strangers if not pathlib.Path(entry).is_relative_to(library)] == []
    assert [entry for entry in strangers if "-packages" in entry] == []


def test_no_site_packages_of_the_machine_is_visible_here_or_in_a_child() -> None:
    assert [entry for entry in site.getsitepackages() if pathlib.Path(entry).exists() and not is_declared(entry)] == []
    assert not site.ENABLE_USER_SITE
    child = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.path)"], capture_output=True, text=True, check=True
    )
    assert eval(child.stdout) == sys.path


def test_the_interpreter_is_the_version_that_the_repository_states() -> None:
    stated = pathlib.Path(".python-version").read_text().strip()
    assert "{}.{}".format(*sys.version_info) == stated


def test_the_network_is_unreachable() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        with pytest.raises(OSError, match="unreachable"):
            connection.connect(("192.0.2.1", 80))  # TEST-NET-1: documentation, never a host.


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        connection, _ = server.accept()
        with connection:
            client.sendall(b"plumb")
            assert connection.recv(5) == b"plumb"


def test_the_shell_that_started_the_test_does_not_leak_into_it() -> None:
    ours = (
        "TEST",
        "PYTHON",
        "PYTEST",
        "PLUMBLINE",
        "RUNFILES",
        "JAVA_RUNFILES",
        "RUN_UNDER",
        "GTEST",
        "XML_OUTPUT",
        "BASH_FUNC",
        "BAZEL",
    )
    system = {
        "HOME",
        "PATH",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "TMPDIR",
        "TZ",
        "USER",
        "LOGNAME",
        "LC_ALL",
        "_",
        "TOKENIZERS_PARALLELISM",
    }
    known = {*system, *OFFLINE, *CACHE_VARIABLES, *THREAD_VARIABLES}
    assert {name for name in os.environ if name not in known and not name.startswith(ours)} == set()


def test_homes_and_caches_are_in_the_scratch_directory() -> None:
    for name in (*CACHE_VARIABLES, "HOME", "TMPDIR"):
        assert pathlib.Path(os.environ[name]).is_relative_to(SCRATCH), name


def test_hubs_are_offline() -> None:
    assert {name: os.environ[name] for name in OFFLINE} == OFFLINE


def test_threads_are_those_of_the_declared_cpus() -> None:
    assert {os.environ[name] for name in THREAD_VARIABLES} == {"2"}


def test_inputs_cannot_be_written_or_are_a_copy_of_this_action_alone() -> None:
    """A sandbox mounts them read-only. A worker shows a copy of its own, which shares its bytes with no other file."""
    for path in (pathlib.Path(__file__), RUNFILES / "_main" / ".python-version"):
        if place():
            assert path.stat().st_nlink == 1
            path.write_bytes(path.read_bytes())
        else:
            with pytest.raises(OSError, match=r"Read-only|denied"):
                path.open("a").close()
    assert (SCRATCH / "planted").write_text("yes")


def test_paths_that_begin_with_two_slashes_begin_with_one() -> None:
    environment = {"TEST_SRCDIR": "//a/b", "TEST_TARGET": "//tests:x", "PYTHONPATH": "//a:/b://c", "HOME": "//h"}
    path = ["//a", "/b", "", "c//d"]
    straighten(environment, path)
    assert environment == {"TEST_SRCDIR": "/a/b", "TEST_TARGET": "//tests:x", "PYTHONPATH": "/a:/b:/c", "HOME": "//h"}
    assert path == ["/a", "/b", "", "c//d"]
    assert not [each for each in (*sys.path, os.environ["TEST_SRCDIR"]) if each.startswith("//")]


def test_a_wheel_that_is_no_dependency_is_no_input() -> None:
    wheels = {path.name.rpartition("pypi__")[2] for path in RUNFILES.iterdir() if "pypi__" in path.name}
    assert "pytest" in wheels
    assert not wheels & {"rich", "torch", "transformers"}


def test_a_wheel_brings_its_bytecode() -> None:
    (site_packages,) = RUNFILES.glob("*pypi__pytest/site-packages")
    sources, bytecode = site_packages.glob("_pytest/*.py"), site_packages.glob("_pytest/__pycache__/*.pyc")
    assert {path.stem for path in sources} == {path.name.partition(".")[0] for path in bytecode}
