"""Finds a file inside an installed wheel without running the wheel's code."""

from importlib.util import find_spec
from pathlib import Path

from training.errors import DataError


def file_in_wheel(package: str, pattern: str, *, distribution: str) -> Path:
    """The one file of an importable package that matches a glob pattern.

    The package is found and not imported: what is wanted of it is a file, and importing one that carries a model would
    ask for a whole inference stack.

    Args:
        package: name it is imported by.
        pattern: of the file's name, directly in the package's directory.
        distribution: name it is installed by, for the message.

    Raises:
        DataError: the package is not installed, or has no such file, or several.
    """
    hint = (
        f"start with ./bazelw run //training:quickstart, which brings {distribution}, or train without any package: "
        "./bazelw run //training:quickstart_from_scratch"
    )
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(package, got="the package is not installed", expected=f"the wheel {distribution}", hint=hint)
    found = [each for place in spec.submodule_search_locations for each in Path(place).glob(pattern)]
    if len(found) != 1:
        names = ", ".join(sorted(each.name for each in found)) or "none"
        raise DataError(
            spec.submodule_search_locations[0],
            got=f"{len(found)} files named {pattern} ({names})",
            expected=f"one, as in the locked version of {distribution}",
            hint=hint,
        )
    return found[0]
