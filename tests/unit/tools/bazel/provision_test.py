"""Provisioning without a network: what is read, what is written, and what a killed or a second run leaves behind."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import zipfile

import pytest

from tools.bazel import provision
from tools.bazel.provision import ProvisionError


def apt_directory(tmp_path: pathlib.Path, name: str, text: str) -> pathlib.Path:
    etc = tmp_path / "apt"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / name).write_text(text)
    return etc


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has Debian's keyring, whatever this one has."""
    monkeypatch.setattr(
        pathlib.Path,
        "glob",
        lambda self, _pattern: [self / "debian-archive-keyring.gpg"] if "keyrings" in str(self) else [],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deb https://mirror.example/debian bookworm main\n", "https://mirror.example/debian"),
        (
            "# deb http://old.example/debian x\ndeb [arch=amd64] http://new.example/debian/ stable main",
            "http://new.example/debian/",
        ),
        (
            "deb http://sec.example/debian-security x main\ndeb http://a.example/pool/debian x main",
            "http://a.example/pool/debian",
        ),
    ],
)
@pytest.mark.usefixtures("keyring")
def test_the_mirror_is_the_machines_own(tmp_path, monkeypatch, text, expected) -> None:
    etc = apt_directory(tmp_path, "sources.list", text)
    assert provision.debian_mirror(etc)[0] == expected


def test_a_machine_without_a_debian_archive_is_told_what_to_install(tmp_path) -> None:
    etc = apt_directory(tmp_path, "sources.list", "deb http://archive.example/ubuntu noble main\n")
    with pytest.raises(ProvisionError, match=r"names no Debian archive\. hint: install bazelisk"):
        provision.debian_mirror(etc)


@pytest.mark.parametrize(
    "name", ["openjdk-25-jdk-headless", "gcc-16-x86-64-linux-gnu", "perl-base", "libasan8", "python3.14-minimal"]
)
def test_what_only_compilers_need_is_left_out(name: str) -> None:
    assert provision.UNNEEDED.match(name)


@pytest.mark.parametrize(
    "name",
    [
        "bazel-bootstrap",
        "openjdk-25-jre-headless",
        "libgcc-s1",
        "libstdc++6",
        "gcc-16-base",
        "patchelf",
        "python3-pip-whl",
        "libc6",
    ],
)
def test_what_bazel_needs_is_kept(name: str) -> None:
    assert not provision.UNNEEDED.match(name)


def test_absolute_links_are_turned_inwards_where_their_target_is_inside(tmp_path, monkeypatch) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "inside").write_text("inside")
    (root / "link").symlink_to("/etc/inside")
    (root / "stranger").symlink_to("/etc/no-such-file-inside")
    provision.unpack([], root)
    assert (root / "link").read_text() == "inside"
    assert not os.readlink(root / "link").startswith("/")
    assert os.readlink(root / "stranger") == "/etc/no-such-file-inside"


def test_the_server_learns_its_release_once(tmp_path) -> None:
    base = tmp_path / "usr/share/bazel"
    base.mkdir(parents=True)
    (base / "build-label.txt").write_text("7.7.1\n")
    zipfile.ZipFile(base / "A-server.jar", "w").close()
    provision.label_server(tmp_path)
    provision.label_server(tmp_path)
    with zipfile.ZipFile(base / "A-server.jar") as jar:
        assert jar.namelist() == ["build-data.properties"]
        assert jar.read("build-data.properties") == b"build.label=7.7.1\n"


def test_the_rc_file_names_the_final_place_and_overrides_every_module(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(provision, "torch_index_reachable", lambda: True)
    (tmp_path / "usr/lib/jvm/java-25-openjdk-amd64").mkdir(parents=True)
    (tmp_path / "usr/lib/jvm/java-1.25.0-openjdk-amd64").symlink_to("java-25-openjdk-amd64")
    final = pathlib.Path("/final/place")
    provision.write_rc(tmp_path, final)
    text = (tmp_path / "bazelrc").read_text()
    assert f"startup --server_javabase={final}/usr/lib/jvm/java-25-openjdk-amd64\n" in text
    assert "--override_module=plumbline_rules_python=%workspace%/tools/pypi/debian\n" in text
    for name in (*provision.RULE_SETS, *provision.EMPTY_MODULES):
        assert f"common --override_module={name}={final}" in text
    assert f"common --repo_env=PIP_EXTRA_INDEX_URL={provision.TORCH_INDEX}\n" in text
    assert str(tmp_path) not in text


def test_a_command_that_fails_shows_its_last_words() -> None:
    with pytest.raises(ProvisionError, match=r"failed \(3\):\nlast words"):
        provision.run("sh", "-c", "echo last words >&2; exit 3")


# A run of the real program with the parts that need a network replaced; `{slow}` is where it can be killed.
PROGRAM = """
import pathlib, sys, time
sys.argv[0] = "provision.py"
from tools.bazel import provision
class Apt:
    def __init__(self, directory): pass
    def download(self, series): return []
def unpack(debs, root):
    (root / "usr").mkdir()
    (root / "usr" / "half").touch()
    print("unpacking", flush=True)
    time.sleep({slow})
def relocate(root, final): (root / "READY").write_text(f"{{final}}\\n")
provision.Apt, provision.unpack, provision.relocate = Apt, unpack, relocate
provision.label_server = provision.stand_ins = lambda root: None
provision.shutil.which = lambda name: name
sys.exit(provision.main())
"""


def start(root: pathlib.Path, slow: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(slow=slow), "--series", "7.7", "--root", str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_leaves_nothing_that_a_later_one_would_use(tmp_path) -> None:
    root = tmp_path / "bazel-7.7"
    killed = start(root, slow=60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "unpacking\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not root.exists()
    finished = start(root, slow=0)
    finished.communicate()
    assert finished.returncode == 0
    assert (root / "READY").read_text() == f"{root}\n"


def test_two_at_once_make_one(tmp_path) -> None:
    root = tmp_path / "bazel-7.7"
    runs = [start(root, slow=0.5), start(root, slow=0.5)]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(stdout for stdout, _ in outputs) == ["", "unpacking\n"]
    assert any("another process is fetching Bazel; waiting for it" in stderr for _, stderr in outputs)


def test_a_root_that_was_moved_is_adjusted_and_not_fetched_again(tmp_path) -> None:
    root = tmp_path / "bazel-7.7"
    root.mkdir()
    (root / "READY").write_text("/elsewhere/bazel-7.7\n")
    run = start(root, slow=0)
    stdout, stderr = run.communicate()
    assert (run.returncode, stdout) == (0, "")
    assert "was moved; adjusting its paths" in stderr
    assert (root / "READY").read_text() == f"{root}\n"


def test_without_apt_the_error_says_what_was_tried(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(provision.shutil, "which", lambda _: None)
    with pytest.raises(ProvisionError) as error:
        provision.provision("7.7", tmp_path / "bazel-7.7")
    assert "no bazelisk or bazel on PATH can serve 7.7.x" in str(error.value)
    assert "hint: install bazelisk and run again, or set BAZEL" in str(error.value)


def test_the_lock_is_released_when_a_run_ends(tmp_path) -> None:
    for _ in range(2):
        run = start(tmp_path / "bazel-7.7", slow=0)
        timer = threading.Timer(30, run.kill)
        timer.start()
        run.communicate()
        timer.cancel()
        assert run.returncode == 0
