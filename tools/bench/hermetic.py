"""`./bazelw run //tools/bench:hermetic`: what the torch stack costs a hermetic test that does not import it.

Four trivial tests that depend on nothing and four that depend on torch, transformers, peft and deepspeed, in turn, all
sandboxed, network off, nothing cached but the wheels. Reports the minimum, median and maximum of each and the ratio
pair by pair: on a shared machine only what was measured side by side can be compared.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import asdict

from tools.bench.rounds import ratios, spread, turns

PACKAGE = "//tests/benchmark/hermetic"
CONTENDERS = {"empty": "no dependency", "torch_stack": "torch + transformers + peft + deepspeed"}


def targets(contender: str) -> list[str]:
    """The four targets of a contender."""
    return [f"{PACKAGE}:{contender}_{number}" for number in range(1, 5)]


def seconds(bazel: str, workspace: str, contender: str) -> float:
    """Wall seconds of one `bazel test` over a contender's targets.

    Raises:
        SystemExit: a test failed, so the time means nothing.
    """
    command = [
        bazel,
        "test",
        "--nocache_test_results",
        "--noshow_progress",
        "--ui_event_filters=-info",
        *targets(contender),
    ]
    started = time.monotonic()
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return time.monotonic() - started


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Minimum, median and maximum of each contender's seconds and of the ratios pair by pair, by title."""
    figures = {f"{CONTENDERS[name]}, seconds": values for name, values in times.items()}
    figures["ratio"] = ratios(times["torch_stack"], against=times["empty"])
    return {title: asdict(spread(values)) for title, values in figures.items()}


def main() -> int:
    """Alternates the contenders and prints the table; writes it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    arguments = parser.parse_args()
    workspace = os.environ["BUILD_WORKSPACE_DIRECTORY"]
    bazel = str(pathlib.Path(workspace, "bazelw"))
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for round_number, name in turns(list(CONTENDERS), num_rounds=arguments.rounds):
        taken = seconds(bazel, workspace, name)
        print(f"round {round_number}{' (warm-up)' if not round_number else ''}: {name} {taken:.2f} s", flush=True)
        if round_number:
            times[name].append(taken)
    result = summary(times)
    for name, values in result.items():
        figures = "  ".join(f"{label} {value:.2f}" for label, value in values.items())
        print(f"{name:50} {figures}")
    if arguments.json:
        path = pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), arguments.json)
        path.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
