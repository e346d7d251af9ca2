"""Runs one program after another, each in a fork of this process, which has imported their libraries before.

Importing torch and what stands on it takes a guard far longer than its test does. Every run of a guard, with whatever
is planted, needs the same libraries and none of our own modules, so a fork has the one without the other.

Usage: warm.py FOLDER, the sources of the programs. Reads runs from stdin as lines of JSON, {"program", "arguments",
"folder", "environment", "log", "seconds_max"}, and answers each with a line: whether it ended by itself. Standard
library only; our own modules must not be imported here.
"""

import ast
import contextlib
import gc
import json
import os
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

FIRST_PARTY = ("tests", "tools", "training")


def imports(file: Path) -> Iterator[str]:
    """The statements with which a file imports from libraries whenever it is imported."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        if all(name.partition(".")[0] not in (*FIRST_PARTY, "__future__") for name in names):
            yield ast.unparse(node)


def import_libraries(folder: Path) -> None:
    """Imports what the files below a folder import; what cannot be is the programs' to complain of."""
    statements = {each for file in sorted(folder.rglob("*.py")) for each in imports(file)}
    gc.disable()  # As the runner does, and for its reason.
    for statement in sorted(statements):
        with contextlib.suppress(ImportError), warnings.catch_warnings(action="ignore"):
            exec(statement, {})
    gc.freeze()
    gc.enable()


def become(run: dict[str, Any]) -> NoReturn:
    """Runs the program as Python would have from the start."""
    os.setsid()  # So that what it leaves running can be ended with it.
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(run["folder"])
    os.environ.clear()
    os.environ.update(run["environment"])
    sys.path.insert(0, run["folder"])
    sys.argv = [run["program"], *run["arguments"]]
    runpy.run_path(run["program"], run_name="__main__")
    sys.exit(0)


def ended(pid: int, seconds_max: float) -> bool:
    """Waits for a session's first process and kills the session; whether the process had ended by then."""
    deadline = time.monotonic() + seconds_max
    while (is_running := os.waitpid(pid, os.WNOHANG) == (0, 0)) and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if is_running:
        os.waitpid(pid, 0)
    return not is_running


def main(folder: Path) -> None:
    """Answers one run after another."""
    import_libraries(folder)
    for line in sys.stdin:
        run = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(run)
        print(json.dumps(ended(pid, run["seconds_max"])), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
