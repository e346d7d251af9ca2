"""Starts a program that trains, and says what it cost up to its first optimizer step."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmark.speed.work import Cost

FIRST_STEP = re.compile(r"step 1/\d+  loss (\S+)")
"""The toolkit's line after a step; a peer's program prints the same."""


def first_step(words: Sequence[str], directory: Path) -> Cost:
    """What a Python program cost from its start to the line after its first step, and that step's loss.

    It is ended after that line. All of its memory counts, for before the work there was none.

    Args:
        words: after `python`.
        directory: where it runs.
    """
    # The packages of this program: under Bazel they are not the interpreter's own. And the directory of the words, not
    # the one where `bazel run` was typed.
    environment = {name: value for name, value in os.environ.items() if name != "BUILD_WORKING_DIRECTORY"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdout
        lines = []
        for line in program.stdout:
            lines.append(line)
            if found := FIRST_STEP.match(line):
                seconds = time.perf_counter() - started
                # After the name in brackets: state, and from the 11th on user, system, and both of ended children.
                times = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
                status = Path(f"/proc/{program.pid}/status").read_text()
                program.kill()
                cpu_seconds = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
                (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
                return Cost(float(found[1]), cpu_seconds, seconds, int(kilobytes) * 1024)
    raise SystemExit(f"no first step:\n{''.join(lines)[-2000:]}")
