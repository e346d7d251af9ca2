"""Unpacks Debian's Bazel into a per-user directory, without root and without touching the system.

`bazelw` calls this when neither $BAZEL nor a bazelisk or bazel on PATH can serve the wanted series. apt itself
downloads and verifies the packages, from the mirror that the machine already uses, into a private state directory;
`dpkg-deb` unpacks them. Everything is made in a directory beside the final one and renamed when complete, under a file
lock: a killed run leaves nothing that a later one would use, and two at once make one.

Bazel from a package archive differs from the official build in four ways, and each has its function here:
it is linked against a newer libc (`relink`), finds its Java libraries by absolute path (`relocate`), does not know its
own release (`label_server`), and comes with rule sets but no registry (`stand_ins`, `write_rc`).

Standard library only; runs on any Python from 3.9 on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence

# Suites of Debian's archive that carry Bazel 7, most stable name first. The newest revision of the series is taken.
SUITES = ("forky", "testing")
PACKAGES = ("bazel-bootstrap", "bazel-rules-python", "patchelf", "python3-pip-whl")
# What the closure pulls in for building Java and C++ programs, or through recommendations of recommendations.
UNNEEDED = re.compile(
    r"openjdk-\d+-jdk|default-jdk|gcc-\d+$|gcc-x|gcc-\d+-x|gcc$|g\+\+|cpp|binutils|lib(a|l|t|ub|hwa)san|perl|libperl|python3(?!-pip-whl)|"
    r"libpython3|libc6-dev|libc-dev|linux-libc|lib(gcc|stdc\+\+)-\d+-dev|libeclipse|libjetty|libmongodb|make$|dpkg-dev|"
    r"build-essential|patch$|bzip2$|xz-utils$|debconf|util-linux|libpam|tzdata|node-|libjs-"
)
# Wheels that rules_python's pip extension unpacks to run pip; fetched with pip, which knows the machine's index, and
# handed to Bazel as a distribution directory, so that Bazel itself never opens a connection.
PIP_TOOLS = (
    *("build==0.9.0", "click==8.0.1", "colorama==0.4.6", "importlib-metadata==1.4.0", "installer==0.7.0"),
    *("more-itertools==8.13.0", "packaging==22.0", "pep517==0.13.0", "pip==22.3.1", "pip-tools==6.12.1"),
    *("setuptools==60.10.0", "tomli==2.0.1", "wheel==0.38.4", "zipp==1.0.0"),
)
RULE_SETS = {
    "bazel_features": "tools/features",
    "bazel_skylib": "tools/skylib",
    "platforms": "tools/platforms",
    "rules_cc": "rules/cc",
    "rules_java": "rules/java",
    "rules_license": "rules/license",
    "rules_proto": "rules/proto",
    "rules_python": "rules/python",
}
# Modules that Bazel's own module asks for and that no target of this repository uses: empty ones do.
EMPTY_MODULES = ("apple_support", "buildozer", "protobuf", "zlib")
# Java libraries that the server finds through other libraries' manifests, by paths that do not exist here.
HIDDEN_JARS = ("perfmark-api.jar", "perfmark-impl.jar", "protobuf.jar", "animal-sniffer-annotations.jar")
# Where the CPU builds of PyTorch live on an open network; a machine that cannot reach it has them in its own index.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


class ProvisionError(Exception):
    """What could not be done, with a hint; printed without a traceback."""


def say(text: str) -> None:
    """Prints one line of progress to standard error."""
    print(f"bazelw: {text}", file=sys.stderr, flush=True)


def run(*command: str | pathlib.Path, env: dict[str, str] | None = None, cwd: pathlib.Path | None = None) -> str:
    """Runs a command and returns its standard output; its last lines are the error if it fails."""
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise ProvisionError(f"`{' '.join(map(str, command))[:200]}` failed ({done.returncode}):\n{tail}")
    return done.stdout


def debian_mirror(etc: pathlib.Path = pathlib.Path("/etc/apt")) -> tuple[str, str]:
    """The (URI, keyring) of the Debian archive that this machine's apt is set up with."""
    sources = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    text = "\n".join(
        path.read_text(errors="replace") for path in sources if path.suffix in {".list", ".sources"} and path.is_file()
    )
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    uri = re.search(r"\b(?:https?|file|mirror\+file)://?\S+?/debian/?(?=\s|$)", "\n".join(lines))
    keyrings = sorted(pathlib.Path("/usr/share/keyrings").glob("debian-archive-keyring.*g*"))
    if not uri or not keyrings:
        raise ProvisionError(
            "apt on this machine names no Debian archive. hint: install bazelisk and run again, or set BAZEL"
        )
    return uri.group(0), str(keyrings[0])


class Apt:
    """A private apt: own lists, own empty package status, own cache; the machine's mirror, proxy and keys."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Writes the configuration below `directory`, which must exist."""
        self.directory = directory
        uri, keyring = debian_mirror()
        for name in ("lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True)
        (directory / "status").touch()
        (directory / "debian.sources").write_text(
            f"Types: deb\nURIs: {uri}\nSuites: {' '.join(SUITES)}\nComponents: main\nSigned-By: {keyring}\n"
        )
        settings = {
            "Dir::Etc::SourceList": directory / "debian.sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": directory / "lists",
            "Dir::State::status": directory / "status",
            "Dir::Cache": directory / "cache",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Sandbox::User": "",
        }
        (directory / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
        self.env = {**os.environ, "APT_CONFIG": str(directory / "apt.conf"), "LC_ALL": "C"}

    def update(self) -> None:
        """Fetches the signed index."""
        run("apt-get", "-q", "update", env=self.env)

    def closure(self, packages: Sequence[str]) -> list[str]:
        """The names of some packages and of everything that they need."""
        plan = run("apt-get", "install", "--no-install-recommends", "--simulate", "-q", *packages, env=self.env)
        return re.findall(r"^Inst (\S+)", plan, re.MULTILINE)

    def fetch(self, names: Sequence[str]) -> list[pathlib.Path]:
        """The files of some packages; apt checks each against the signed index."""
        debs = self.directory / "debs"
        debs.mkdir()
        run("apt-get", "-q", "download", *names, env=self.env, cwd=debs)
        return sorted(debs.glob("*.deb"))

    def download(self, series: str) -> list[pathlib.Path]:
        """Fetches the closure of PACKAGES less UNNEEDED."""
        self.update()
        policy = run("apt-cache", "policy", PACKAGES[0], env=self.env)
        offered = re.findall(r"\b(\d+\.\d+\.\d+)\S* \d+$", policy, re.MULTILINE)
        version = next((version for version in offered if version.startswith(series + ".")), None)
        if version is None:
            raise ProvisionError(
                f"Debian {'/'.join(SUITES)} offers {PACKAGES[0]} {', '.join(offered) or 'nothing'}, not {series}.x. "
                "hint: install bazelisk and run again, or set BAZEL"
            )
        closure = [name for name in self.closure(PACKAGES) if not UNNEEDED.match(name)]
        say(f"downloading Bazel {version} and its libraries: {len(closure)} Debian packages, about 190 MB")
        return self.fetch(closure)


def unpack(debs: list[pathlib.Path], root: pathlib.Path) -> None:
    """Unpacks every package and turns absolute links into links inside `root` where their target is there."""
    # One after the other would take twice as long; each `dpkg-deb` is a process of its own.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda deb: run("dpkg-deb", "--extract", deb, root), debs))
    for path in root.rglob("*"):
        if path.is_symlink() and (target := os.readlink(path)).startswith("/"):
            inside = root / target[1:]
            if os.path.lexists(inside):
                path.unlink()
                path.symlink_to(os.path.relpath(inside, path.parent))


def is_elf(path: pathlib.Path) -> bool:
    """Whether `path` is a dynamic program or library."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def java_home(root: pathlib.Path) -> pathlib.Path:
    """The one Java runtime below `root`."""
    return next(path for path in root.glob("usr/lib/jvm/java-*") if path.is_dir() and not path.is_symlink())


def patchelf(root: pathlib.Path) -> list[str | pathlib.Path]:
    """The command that came with the packages, run by the loader and with the libraries that did."""
    libraries = next(root.glob("usr/lib/*/libc.so.6")).parent
    return [next(libraries.glob("ld-linux*.so.*")), "--library-path", libraries, root / "usr/bin/patchelf"]


def set_loader(root: pathlib.Path, final: pathlib.Path, programs: Iterable[pathlib.Path], rpath: str) -> None:
    """Has programs below `root` start with the loader as it will stand in `final`; they find libraries in `rpath`."""
    command = patchelf(root)
    loader = final / pathlib.Path(command[0]).relative_to(root)
    for path in programs:
        run(*command, "--set-interpreter", loader, "--force-rpath", "--set-rpath", rpath, path)


def relink(root: pathlib.Path, final: pathlib.Path) -> None:
    """Points the programs at the loader and the libraries that came with them, as they will stand at `final`."""
    java = java_home(root)
    libraries = next(root.glob("usr/lib/*/libc.so.6")).parent.relative_to(root)
    java_libraries = java.relative_to(root) / "lib"
    rpath = ":".join(str(final / path) for path in (libraries, java_libraries, java_libraries / "server"))
    programs = [root / "usr/bin/bazel", *root.glob("usr/libexec/*/bazel/*"), *java.glob("bin/*")]
    programs += [java / "lib/jspawnhelper", java / "lib/jexec"]
    set_loader(root, final, filter(is_elf, programs), rpath)
    for path in filter(
        is_elf, [*java.rglob("*.so"), *root.glob("usr/lib/*/bazel/*.so"), *root.glob("usr/lib/*/jni/*.so")]
    ):
        run(*patchelf(root), "--force-rpath", "--set-rpath", rpath, path)


def relocate(root: pathlib.Path, final: pathlib.Path) -> None:
    """Writes `final` into everything that holds an absolute path: programs, class path, rc file, and READY."""
    relink(root, final)
    base = root / "usr/share/bazel"
    original = base / "classpath.original"
    classpath = base / "bazel_classpath_debian_depends.txt"
    if not original.exists():
        shutil.copyfile(classpath, original)
    jars = [jar for jar in re.split(r"[:\s]+", original.read_text()) if jar]
    separator = ":" if ":" in original.read_text() else "\n"
    jars += [f"/usr/share/java/{name}" for name in HIDDEN_JARS]
    classpath.write_text(separator.join(str(final / jar.lstrip("/")) for jar in jars) + "\n")
    write_rc(root, final)
    (root / "READY").write_text(f"{final}\n")


def label_server(root: pathlib.Path) -> None:
    """Tells the server its release, which the packaged jar leaves out; rule sets choose their behaviour by it."""
    base = root / "usr/share/bazel"
    with zipfile.ZipFile(base / "A-server.jar", "a") as jar:
        if "build-data.properties" not in jar.namelist():
            jar.writestr("build-data.properties", f"build.label={(base / 'build-label.txt').read_text().strip()}\n")


def stand_ins(root: pathlib.Path) -> None:
    """Makes the empty modules, and the wheels that pip itself is run from."""
    for name in EMPTY_MODULES:
        module = root / "modules" / name
        module.mkdir(parents=True)
        (module / "MODULE.bazel").write_text(f'module(name = "{name}")\n')
        (module / "BUILD.bazel").touch()
    (root / "modules/buildozer/buildozer_binary.bzl").write_text(
        "def _repo_impl(rctx):\n"
        '    rctx.file("BUILD.bazel", "")\n\n'
        "_repo = repository_rule(implementation = _repo_impl)\n\n"
        "def _impl(_ctx):\n"
        '    _repo(name = "buildozer_binary")\n\n'
        "buildozer_binary = module_extension(implementation = _impl)\n"
    )
    say("fetching the pip that rules_python uses")
    # pip itself comes along: Debian's Python has none unless it was asked for.
    wheel = next(root.glob("usr/share/python-wheels/pip-*.whl"))
    pip: list[str | pathlib.Path] = [
        sys.executable,
        wheel / "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        halves = (PIP_TOOLS[::2], PIP_TOOLS[1::2])
        list(pool.map(lambda wheels: run(*pip, "--only-binary=:all:", "--dest", root / "wheels", *wheels), halves))


def torch_index_reachable() -> bool:
    """Whether the machine sees PyTorch's own index, which an open network needs for the CPU build."""
    try:
        with urllib.request.urlopen(TORCH_INDEX + "/torch/", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def write_rc(root: pathlib.Path, final: pathlib.Path) -> None:
    """Writes what this Bazel needs to be told: where it lives, and where its modules come from."""
    share, java = final / "usr/share/bazel", java_home(root).relative_to(root)
    lines = [
        "# Written by tools/bazel/provision.py.",
        f"startup --install_base={share}",
        "startup --trust_install_base",
        f"startup --server_javabase={final / java}",
        f"common --distdir={final / 'wheels'}",
        "common --check_direct_dependencies=off",
        "common --override_module=plumbline_rules_python=%workspace%/tools/pypi/debian",
        *(f"common --override_module={name}={share / path}" for name, path in sorted(RULE_SETS.items())),
        *(f"common --override_module={name}={final / 'modules' / name}" for name in EMPTY_MODULES),
    ]
    if torch_index_reachable():
        lines.append(f"common --repo_env=PIP_EXTRA_INDEX_URL={TORCH_INDEX}")
    (root / "bazelrc").write_text("\n".join(lines) + "\n")


def provision(series: str, root: pathlib.Path) -> None:
    """Makes `root` ready, or leaves it as it was. The caller holds the lock."""
    if (root / "READY").is_file():
        say(f"{root} was moved; adjusting its paths")
        relocate(root, root)
        return
    for command in ("apt-get", "dpkg-deb"):
        if not shutil.which(command):
            raise ProvisionError(
                f"no bazelisk or bazel on PATH can serve {series}.x, and without `{command}` no Debian package can "
                "be unpacked. hint: install bazelisk and run again, or set BAZEL to a Bazel binary"
            )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{root.name}.partial-", dir=root.parent) as scratch:
        new, apt_directory = pathlib.Path(scratch, "root"), pathlib.Path(scratch, "apt")
        new.mkdir()
        apt_directory.mkdir()
        unpack(Apt(apt_directory).download(series), new)
        label_server(new)
        stand_ins(new)
        relocate(new, root)
        shutil.rmtree(root, ignore_errors=True)
        new.rename(root)
    say(f"Bazel is ready in {root} ({time.monotonic() - started:.0f} s)")


def main() -> int:
    """Parses the command line of `bazelw` and provisions under a lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", required=True, help="wanted Bazel series, such as 7.7")
    parser.add_argument("--root", required=True, type=pathlib.Path, help="directory to make")
    arguments = parser.parse_args()
    root = arguments.root.absolute()
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{root.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is fetching Bazel; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        ready = root / "READY"
        if not ready.is_file() or ready.read_text().strip() != str(root):
            try:
                provision(arguments.series, root)
            except ProvisionError as error:
                say(str(error))
                return 69
    return 0


if __name__ == "__main__":
    sys.exit(main())
