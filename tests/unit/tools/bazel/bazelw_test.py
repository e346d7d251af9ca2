"""Which Bazel the wrapper picks; each candidate is a script that says its name."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest


@pytest.fixture(autouse=True)
def tools(tmp_path: pathlib.Path) -> None:
    """The few system programs that the wrapper calls; whatever Bazel this machine has stays out of sight."""
    (tmp_path / "tools").mkdir()
    for name in ("bash", "mkdir", "rm", "sed", "sh", "sleep", "timeout"):
        (tmp_path / "tools" / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "tools" / "python3").symlink_to(pathlib.Path(sys.executable).resolve())


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkout with the real wrapper, and a provisioning program that only says that it was asked."""
    folder = tmp_path / "checkout"
    (folder / "tools/bazel").mkdir(parents=True)
    shutil.copy("bazelw", folder / "bazelw")
    (folder / ".bazelversion").write_text("7.7.1\n")
    (folder / "tools/bazel/provision.py").write_text("import sys\nprint('provisioning', *sys.argv[1:])\nsys.exit(69)\n")
    return folder


def program(path: pathlib.Path, version: str) -> pathlib.Path:
    """A launcher of the given version that counts how often it is asked for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo x >>"{path}.asked"; echo "{version}"\n'
        f'else echo "{path.name}: $*"; fi\n'
    )
    path.chmod(0o755)
    return path


def run(checkout: pathlib.Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout.parent / "tools"), "HOME": str(checkout.parent / "home"), **variables}
    return subprocess.run(
        [checkout / "bazelw", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def on_path(checkout: pathlib.Path) -> str:
    return f"{checkout.parent / 'bin'}:{checkout.parent / 'tools'}"


def test_a_bazel_named_by_the_person_comes_first(checkout) -> None:
    named = program(checkout.parent / "named", "bazel 9.0.0")
    program(checkout.parent / "bin" / "bazel", "bazel 7.7.1")
    done = run(checkout, "test", "//...", BAZEL=str(named), PATH=on_path(checkout))
    assert done.stdout == "named: test //...\n"


@pytest.mark.parametrize("name", ["bazelisk", "bazel"])
def test_a_launcher_on_path_that_serves_the_series_is_used(checkout, name) -> None:
    program(checkout.parent / "bin" / name, "bazel 7.7.4")
    assert run(checkout, "info", PATH=on_path(checkout)).stdout == f"{name}: info\n"


def test_a_launcher_of_another_series_is_passed_over_and_not_asked_again(checkout) -> None:
    launcher = program(checkout.parent / "bin" / "bazel", "bazel 8.4.0")
    (checkout.parent / "home/.cache/plumbline").mkdir(parents=True)
    ready = checkout.parent / "home/.cache/plumbline/bazel-7.7-1"
    program(ready / "usr/bin/bazel", "bazel 7.7.1")
    (ready / "READY").write_text(f"{ready}\n")
    for _ in range(3):
        assert (
            run(checkout, "info", PATH=on_path(checkout)).stdout
            == f"bazel: --nosystem_rc --bazelrc={ready}/bazelrc info\n"
        )
    assert pathlib.Path(f"{launcher}.asked").read_text() == "x\n"


def test_a_refused_launcher_that_changed_is_asked_again(checkout) -> None:
    launcher = program(checkout.parent / "bin" / "bazel", "bazel 8.4.0")
    run(checkout, "info", PATH=on_path(checkout))
    program(launcher, "bazel 7.7.1")
    os.utime(launcher, (4e9, 4e9))
    assert run(checkout, "info", PATH=on_path(checkout)).stdout == "bazel: info\n"


def test_without_any_bazel_one_is_provisioned_and_a_failure_is_passed_on(checkout) -> None:
    done = run(checkout, "info")
    root = checkout.parent / "home/.cache/plumbline/bazel-7.7-1"
    assert done.returncode == 69
    assert done.stderr == f"provisioning --series 7.7 --root {root}\n"
    assert done.stdout == ""


def test_after_a_failed_provisioning_every_launcher_is_asked_again(checkout) -> None:
    launcher = program(checkout.parent / "bin" / "bazel", "bazel 8.4.0")
    for _ in range(2):
        assert run(checkout, "info", PATH=on_path(checkout)).returncode == 69
    assert pathlib.Path(f"{launcher}.asked").read_text() == "x\nx\n"


def test_the_cache_can_be_put_elsewhere(checkout) -> None:
    done = run(checkout, "info", PLUMBLINE_CACHE=str(checkout.parent / "elsewhere"))
    assert done.stderr.endswith(f"--root {checkout.parent / 'elsewhere/bazel-7.7-1'}\n")


def test_arguments_arrive_as_they_were_typed(checkout) -> None:
    program(checkout.parent / "bin" / "bazel", "bazel 7.7.1")
    done = run(checkout, "test", "--test_filter=a b", "*", PATH=on_path(checkout))
    assert done.stdout == "bazel: test --test_filter=a b *\n"


def test_what_would_keep_wheels_from_being_built_does_not_reach_bazel(checkout) -> None:
    """A Python program that Bazel runs has PYTHONSAFEPATH, as `//tools/bench:build`, which calls Bazel again."""
    named = checkout.parent / "named"
    named.write_text('#!/bin/sh\necho "${PYTHONSAFEPATH-} ${PYTHONPATH-} ${PYTHONHOME-} $KEPT"\n')
    named.chmod(0o755)
    theirs = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/theirs", "PYTHONHOME": "/theirs"}
    assert run(checkout, "info", BAZEL=str(named), KEPT="kept", **theirs).stdout == "   kept\n"


def test_it_works_from_any_folder(checkout) -> None:
    program(checkout.parent / "bin" / "bazel", "bazel 7.7.1")
    done = subprocess.run(
        ["../bazelw", "info"],
        cwd=checkout / "tools",
        env={"PATH": on_path(checkout), "HOME": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "bazel: info\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def remotely(checkout: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    named = program(checkout.parent / "named", "bazel 9.0.0")
    return run(checkout, *arguments, BAZEL=str(named))


@pytest.mark.parametrize("where", [".bazelrc", "user.bazelrc", "writer.bazelrc", "typed"])
def test_a_cluster_that_is_not_there_is_named_in_seconds(checkout, where) -> None:
    address = f"grpc://127.0.0.1:{free_port()}"
    line = f"build:remote --remote_executor={address}\n"
    (checkout / ".bazelrc").write_text(
        "build:remote --remote_executor=grpc://127.0.0.1:1\n" * (where != ".bazelrc")
        + line * (where == ".bazelrc")
        + "try-import %workspace%/user.bazelrc"
    )
    (checkout / "user.bazelrc").write_text(line if where == "user.bazelrc" else "import %workspace%/writer.bazelrc\n")
    (checkout / "writer.bazelrc").write_text(line * (where == "writer.bazelrc"))
    words = [f"--remote_executor={address}"] if where == "typed" else []
    began = time.monotonic()
    done = remotely(checkout, "test", "--config=remote", *words, "//...")
    assert time.monotonic() - began < 20
    assert (done.returncode, done.stdout) == (34, "")
    assert done.stderr.startswith(f"bazelw: nobody listens at {address}, where --config=remote builds. hint: ./bazelw ")


def test_a_cluster_that_is_just_starting_is_waited_for(checkout) -> None:
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        (checkout / ".bazelrc").write_text(f"build:remote --remote_executor=grpc://127.0.0.1:{late.getsockname()[1]}\n")
        threading.Timer(1.5, late.listen).start()
        done = remotely(checkout, "build", "--config=remote", "//...")
    assert (done.stdout, done.stderr) == ("named: build --config=remote //...\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["build", "//..."],
        ["build", "--nobuild", "//..."],
        ["--bazelrc=other", "test", "//..."],
        ["aquery", "--config=remote", "--nobuild", "//..."],
        ["aquery", "--config=remote", "//..."],
        ["build", "--nobuild", "--config=remote", "//..."],
        ["build", "--config=remote", "--remote_executor=unix:/run/cluster", "//..."],
        ["build", "--config=remote", "--remote_proxy=unix:/run/proxy", "//..."],
        ["--bazelrc=other", "build", "--config=remote", "//..."],
        ["run", "//a", "--", "--config=remote"],
    ],
    ids=" ".join,
)
def test_what_asks_no_cluster_or_one_that_is_elsewhere_is_not_kept(checkout, words) -> None:
    (checkout / ".bazelrc").write_text(f"build:remote --remote_executor=grpc://127.0.0.1:{free_port()}\n")
    assert remotely(checkout, *words).stdout == f"named: {' '.join(words)}\n"
