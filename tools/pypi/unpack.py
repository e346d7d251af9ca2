"""Makes one importable directory of a wheel that rules_python unpacked; prints its requirements as JSON.

Usage: unpack.py FETCHED SITE_PACKAGES EXTRA,EXTRA [FETCHED...]

Hard links where the file system allows, so torch does not lie on disk twice. Bytecode is compiled here, once, and
marked as never to be checked against its source: sandboxes cannot write bytecode, and without it an import of the torch
stack takes three times as long.

Bazel looks at a source directory's timestamp and no deeper. So the directory gets a fixed one, and a file beside it
that holds the digest of everything inside: that file is what puts the wheel's content into the key of an action, equal
on every machine that unpacked the same wheel for the same interpreter.

Further fetched wheels are those whose shared libraries torch loads: see `add_libraries`.
"""

import compileall
import hashlib
import json
import os
import pathlib
import py_compile
import shutil
import sys
from importlib.metadata import Distribution

from packaging.requirements import Requirement

FIXED_TIME = 1_577_836_800  # 2020-01-01, in seconds


def link(source: str, target: str) -> None:
    """Hard-links a file, or copies it where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def digest(directory: pathlib.Path) -> str:
    """The SHA-256 of every path and every content below a directory, as hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(directory)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def requirements(distribution: Distribution, extras: list[str]) -> list[str]:
    """The names of the distributions that this one needs here, with the given extras."""
    needed = {
        requirement.name
        for requirement in map(Requirement, distribution.requires or [])
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ["", *extras])
    }
    return sorted(needed - {distribution.name})


def add_libraries(site: pathlib.Path, fetched: list[pathlib.Path]) -> None:
    """Puts what other wheels install into the `lib` of an environment beside the libraries of torch.

    Torch looks for Intel's libraries there, and then in its own `lib`. Here each wheel has a directory of its own, so
    that torch's is the one where all of them can be found, by torch and by each other.

    Raises:
        shutil.Error: torch or two of them have a file of the same name.
    """

    def link_new(source: str, target: str) -> None:
        if os.path.lexists(target):
            raise FileExistsError(f"{target}: two wheels bring it. hint: keep one of them out of torch's directory")
        link(source, target)

    for lib in (other / "data" / "lib" for other in fetched):
        if lib.is_dir():
            shutil.copytree(lib, site / "torch" / "lib", copy_function=link_new, dirs_exist_ok=True)


def main(fetched: pathlib.Path, site: pathlib.Path, extras: list[str], libraries: list[pathlib.Path]) -> None:
    """Links the files, compiles them and prints the requirements."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(fetched / "site-packages", site, copy_function=link, ignore=ignored, symlinks=True)
    if (fetched / "bin").is_dir():  # Programs, where `pip install --target` puts them and their modules look for them.
        shutil.copytree(fetched / "bin", site / "bin", copy_function=link, dirs_exist_ok=True)
    add_libraries(site, libraries)
    compileall.compile_dir(
        site, quiet=2, workers=0, stripdir=str(site), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    (metadata,) = site.glob("*.dist-info")
    site.with_name("CONTENT").write_text(f"{digest(site)}\n")
    os.utime(site, (FIXED_TIME, FIXED_TIME))
    print(json.dumps(requirements(Distribution.at(metadata), extras)))


if __name__ == "__main__":
    first, second, *others = (pathlib.Path(path) for path in [*sys.argv[1:3], *sys.argv[4:]])
    main(first, second, [extra for extra in sys.argv[3].split(",") if extra], others)
