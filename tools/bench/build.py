"""`./bazelw run //tools/bench:build`: what Bazel takes when all, little or nothing is to be done, and for big matrices.

In checkouts of the last commit with an output base and a disk cache of their own, so that no other build gains or loses
by it. What must not run again, and does, fails the command: times of a build that does too much mean nothing.

Writes a table, and below `.plumbline/bench` a JSON file with every figure and the machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.bench.rounds import machine

LEAF = "training/schedule.py"
"""A module that few tests need."""

LOCK = "requirements_lock.txt"

PATTERNS = ["//tests/unit/training:all", "//tests/unit/training/data:all"]
"""Of all unit tests, some hold files against the lock's digest, and fail where it has changed."""

CELLS = "tests/smoke/cells.bzl"


@dataclass(frozen=True)
class Row:
    """One thing that was asked of Bazel."""

    says: str
    seconds: float
    num_run: int | None = None
    """Tests that were executed; None where none was asked for."""
    num_found: int | None = None
    """Tests whose result was there already."""
    heap_bytes: int | None = None
    """Of Bazel's server, after its garbage was collected."""
    seconds_max: float | None = None
    """The target."""

    @property
    def misses(self) -> bool:
        """True if it took longer than the target allows."""
        return self.seconds_max is not None and self.seconds > self.seconds_max


@dataclass(frozen=True)
class Checkout:
    """A clone with an output base of its own, beside it."""

    path: Path
    disk_cache: Path

    def bazel(self, command: str, *words: str) -> tuple[float, str]:
        """Seconds that a command took, and its output.

        Raises:
            SystemExit: it failed, so that the time means nothing.
        """
        typed = [str(self.path / "bazelw"), f"--output_base={self.path}.base", command, *words]
        started = time.monotonic()
        done = subprocess.run(typed, cwd=self.path, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(typed)}: exit {done.returncode}\n{done.stderr[-2000:]}")
        return time.monotonic() - started, done.stdout

    def test(self, says: str, patterns: Sequence[str], seconds_max: float | None = None) -> Row:
        """Tests the patterns, and counts what was executed."""
        events = self.path / "events.json"
        words = [f"--disk_cache={self.disk_cache}", f"--build_event_json_file={events}", "--noshow_progress"]
        seconds, _ = self.bazel("test", *words, "--ui_event_filters=-info", *patterns)
        found = list(were_found(events.read_text(encoding="utf-8")))
        return Row(says, seconds, found.count(False), found.count(True), seconds_max=seconds_max)

    def append(self, name: str, text: str) -> None:
        """Adds to a file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def analysed(self, num_cells: int, seconds_max: float | None) -> Row:
        """A new server loads and analyses a smoke matrix of so many cells."""
        (self.path / CELLS).write_text(matrix_of(num_cells), encoding="utf-8")
        self.bazel("shutdown")
        self.bazel("info", "release")
        seconds, _ = self.bazel("build", "--nobuild", "//tests/smoke/...")
        _, heap = self.bazel("info", "used-heap-size-after-gc")
        return Row(
            f"smoke matrix of {num_cells:,} cells, loaded and analysed by a new server",
            seconds,
            heap_bytes=int(heap.strip().removesuffix("MB")) * 10**6,
            seconds_max=seconds_max,
        )


def were_found(events: str) -> Iterator[bool]:
    """Of each test in an event file, whether its result was there already, in memory, on disk or with a server."""
    for event in map(json.loads, events.splitlines()):
        told = event.get("testResult")
        if told:
            yield told.get("cachedLocally", False) or told.get("executionInfo", {}).get("cachedRemotely", False)


def matrix_of(num_cells: int) -> str:
    """What `//tests/smoke:generate` would write for so many cells of one card each."""
    names = "\n".join(f"made_{number:06d}_x1" for number in range(num_cells))
    return f'"""Made for a measurement."""\n\nCELLS = [\n    (["cpu"], "blocking", """\n{names}\n"""),\n]\n'


def cloned(workspace: Path, commit: str, path: Path) -> Checkout:
    """A clone of a commit."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(workspace), str(path)], check=True)
    subprocess.run(["git", "-C", str(path), "checkout", "--quiet", commit], check=True)
    return Checkout(path, path.parent / "cache")


def measured(folder: Path, workspace: Path, patterns: Sequence[str], sizes: Sequence[int]) -> Iterator[Row]:
    """Every row, in the order in which they are measured: each needs what came before."""
    # Somebody may commit meanwhile.
    words = ["git", "-C", str(workspace), "rev-parse", "HEAD"]
    commit = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    first = cloned(workspace, commit, folder / "first")
    try:
        yield first.test("nothing there but Bazel: wheels, analysis, every test", patterns)
        yield first.test("no change", patterns, seconds_max=1.5)
        first.append(LEAF, "# Changed.\n")
        yield first.test(f"{LEAF} changed", patterns)
        first.append(LOCK, "# Changed.\n")
        yield first.test(f"a comment in {LOCK}", patterns)
        subprocess.run(["git", "-C", str(first.path), "checkout", "--quiet", "."], check=True)
        second = cloned(workspace, commit, folder / "second")
        try:
            second.bazel("build", "--nobuild", *patterns)
            second.bazel("shutdown")
            yield second.test("another checkout, wheels there, results in a cache", patterns, seconds_max=15.0)
        finally:
            second.bazel("shutdown")
        if sizes:
            first.bazel("build", "--nobuild", "//tests/smoke/...")  # Fetches the wheels of the cells.
        for size in sizes:
            yield first.analysed(size, 30.0 if size == 10_000 else None)
    finally:
        first.bazel("shutdown")


def wrong(rows: Sequence[Row]) -> list[str]:
    """What ran although it need not have, or did not although it must."""
    every, same, leaf, lock, other = rows[:5]
    found = [f"{each.says}: {each.num_run} tests ran; expected none" for each in (same, lock, other) if each.num_run]
    if not every.num_run:
        found.append(f"{every.says}: no test ran")
    elif not 0 < (leaf.num_run or 0) < every.num_run:
        found.append(f"{leaf.says}: {leaf.num_run} of {every.num_run} tests ran; expected some, not all")
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows, for a person, in Markdown."""

    def text(value: int | None) -> str:
        return "" if value is None else f"{value:,}"

    lines = ["| what | seconds | tests run | found | heap | target |", "|---|---|---|---|---|---|"]
    for row in rows:
        heap = "" if row.heap_bytes is None else f"{row.heap_bytes / 1e6:,.0f} MB"
        target = "" if row.seconds_max is None else f"{row.seconds_max:g} s: {'**missed**' if row.misses else 'met'}"
        lines.append(
            f"| {row.says} | {row.seconds:.1f} | {text(row.num_run)} | {text(row.num_found)} | {heap} | {target} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measures, prints the table, and fails if something ran that need not have, or took longer than its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = f"tests, of which none reads {LOCK} itself (default: {' '.join(PATTERNS)})"
    parser.add_argument("patterns", nargs="*", default=PATTERNS, help=words)
    parser.add_argument("--cells", type=int, nargs="*", default=[100, 1_000, 10_000], help="sizes of the matrix")
    arguments = parser.parse_args()
    workspace = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    folder = Path(tempfile.mkdtemp(prefix="plumbline-bench-"))
    rows: list[Row] = []
    try:
        for row in measured(folder, workspace, arguments.patterns, arguments.cells):
            print(f"{row.says}: {row.seconds:.1f} s", flush=True)
            rows.append(row)
    finally:
        # Bazel takes the right to write from what it unpacked.
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{table(rows)}\n")
    kept = workspace / ".plumbline/bench" / time.strftime("build-%Y%m%d-%H%M%S.json", time.gmtime())
    kept.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, "machine": machine(), "rows": [asdict(row) for row in rows]}
    kept.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"every figure: {kept}")
    errors = wrong(rows)
    print("\n".join(errors), file=sys.stderr, end="\n" if errors else "")
    return 1 if errors or any(row.misses for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
