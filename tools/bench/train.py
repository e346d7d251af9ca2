"""`./bazelw run //tools/bench:train`: what training costs beside other ways to do the same.

Each case has contenders that do the same work, in processes of their own and in turn (`tools.bench.rounds`), and that
must agree on a number which only that work gives. Speed is work per processor second of one thread: on a shared machine
the clock says what others were doing. Ratios are to the case's first contender; above 1 the others are faster.

Writes a table, and below `.plumbline/bench` a JSON file with every figure, the versions and the machine. Earlier files
stay: they are the history. `ratios.png` beside them shows each case as it came out last.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.bench.picture import Mark, draw
from tools.bench.rounds import Spread, machine, ratios, spread, turns

PACKAGE = Path("tests/benchmark/speed")
AGREE_RELATIVE = 1e-4
"""How far contenders' checks may be apart: they sum in another order, and some take another attention."""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    says: str
    contenders: dict[str, tuple[str, ...]]
    """By what the table calls it: the program below PACKAGE, and its words. All are held against the first."""
    unit: str
    """What work is counted in."""
    speed_min: float | None = None
    """The target for the second contender: its ratio of speeds should be at least this."""
    memory_max: float | None = None
    """Its ratio of memory should be at most this."""
    also_min: dict[str, float] = field(default_factory=dict)
    """By name, what else it tells and should be at least."""
    also_max: dict[str, float] = field(default_factory=dict)
    """Or at most."""

    @property
    def has_target(self) -> bool:
        """Whether its second contender has any."""
        return bool(self.speed_min or self.memory_max or self.also_min or self.also_max)


CASES = {
    **{
        f"step {shape}": Case(
            f"SFT steps of a Llama of {shape}, packed",
            {"bare loop": ("step", "bare", "--shape", shape), "plumbline": ("step", "toolkit", "--shape", shape)},
            "tokens",
            speed_min=0.97,
        )
        for shape in ("5M", "9M, vocabulary of 32k", "25M")
    },
    "chat 5M": Case(
        "SFT of a Llama of 5M on ragged conversations, from the file to the last step",
        {
            "TRL, packed": ("trl_chat", "sft", "packed", "--shape", "5M"),
            "plumbline": ("chat", "sft", "--shape", "5M"),
            "TRL, padded": ("trl_chat", "sft", "padded", "--shape", "5M"),
        },
        "tokens",
        speed_min=1.8,
    ),
    "pairs 5M": Case(
        "DPO of a Llama of 5M, from the file to the last step",
        {
            "TRL, reference precomputed": ("trl_chat", "dpo", "precomputed", "--shape", "5M"),
            "plumbline": ("chat", "dpo", "--shape", "5M"),
            "TRL, padded": ("trl_chat", "dpo", "padded", "--shape", "5M"),
        },
        "pairs",
        speed_min=1.8,
    ),
    "loss 128k": Case(
        "loss and gradient with a vocabulary of 128 thousand",
        {"all scores at once": ("head", "whole"), "in chunks": ("head", "chunks")},
        "tokens",
        speed_min=1.0,
        memory_max=1 / 7,
    ),
    **{
        f"pack {number}": Case(
            f"packs of {number} documents, each kept whole",
            {
                "TRL, a thousand at a time": ("trl_fill", "thousands", "--documents", number),
                "plumbline": ("fill", "--documents", number),
                "TRL, all at once": ("trl_fill", "whole", "--documents", number),
            },
            "documents",
            speed_min=10.0,
            also_min={"percent_full": 99.9},
        )
        for number in ("10000", "100000", "1000000")
    },
    "start": Case(
        "from the start of a process to the first step of SFT, with a tiny model",
        {"TRL": ("trl_start",), "plumbline": ("start",)},
        "starts",
        speed_min=2.0,
    ),
    "draw 5M": Case(
        "completions of a Llama of 5M, the prompts ragged and in groups",
        {
            "generate, padded on the left": ("draw", "transformers", "--shape", "5M"),
            "plumbline": ("draw", "toolkit", "--shape", "5M"),
        },
        "tokens",
        speed_min=2.0,
    ),
    "save 5M": Case(
        "SFT of a Llama of 5M that saves every 20 steps",
        {
            "no checkpoint on the way": ("save", "never", "--shape", "5M"),
            "plumbline, beside the steps": ("save", "beside", "--shape", "5M"),
            "plumbline, standing still": ("save", "still", "--shape", "5M"),
        },
        "tokens",
        also_max={"percent_stalled": 5.0},
    ),
}


@dataclass(frozen=True)
class Go:
    """One line of a contender."""

    amount: int
    cpu_seconds: float
    seconds: float
    bytes: int
    check: float
    versions: dict[str, str]
    also: dict[str, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Work per processor second."""
        return self.amount / self.cpu_seconds


@dataclass(frozen=True)
class Row:
    """What the table says of a contender."""

    case: str
    contender: str
    unit: str
    speed: Spread
    speed_ratio: Spread
    bytes: Spread
    memory_ratio: Spread
    also: dict[str, float]
    """The middle of each of its other figures."""
    target: str
    """`met`, or which it misses; empty if it has none."""

    @property
    def misses(self) -> bool:
        """Whether it misses one."""
        return self.target not in ("", "met")


class DisagreeError(Exception):
    """The contenders of a case did not do the same work."""


def go(words: Sequence[str]) -> Go:
    """Runs a contender once.

    Raises:
        SystemExit: it failed; its last words are shown.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(PACKAGE / words[0]), *words[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return Go(**json.loads(done.stdout.splitlines()[-1]))


def rows(name: str, case: Case, goes: dict[str, list[Go]]) -> list[Row]:
    """The case's part of the table.

    Raises:
        DisagreeError: two contenders' checks are further apart than AGREE_RELATIVE.
    """
    first, *others = goes
    (held_against, *_) = goes[first]
    for contender, each in goes.items():
        for one in each:
            if not math.isclose(one.check, held_against.check, rel_tol=AGREE_RELATIVE):
                raise DisagreeError(
                    f"{name}: {contender} comes to {one.check}, {first} to {held_against.check}; expected the same "
                    f"within {AGREE_RELATIVE:g} of it. hint: they do not do the same work, so their speeds say nothing"
                )
    made = []
    for contender, each in goes.items():
        speed_ratio = spread(ratios([one.speed for one in each], [one.speed for one in goes[first]]))
        memory_ratio = spread(ratios([one.bytes for one in each], [one.bytes for one in goes[first]]))
        also = {key: statistics.median(one.also[key] for one in each) for key in each[0].also}
        target = ""
        if contender in others[:1] and case.has_target:
            missed = []
            if case.speed_min and speed_ratio.median < case.speed_min:
                missed.append(f"speed below {case.speed_min:.2f}")
            if case.memory_max and memory_ratio.median > case.memory_max:
                missed.append(f"memory above {case.memory_max:.2f}")
            missed += [f"{key} below {least:g}" for key, least in case.also_min.items() if also[key] < least]
            missed += [f"{key} above {most:g}" for key, most in case.also_max.items() if also[key] > most]
            target = ", ".join(missed) or "met"
        speed, held = spread([one.speed for one in each]), spread([one.bytes for one in each])
        made.append(Row(name, contender, case.unit, speed, speed_ratio, held, memory_ratio, also, target))
    return made


def said(speed: float) -> str:
    """Three digits or more."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.2f}"


def table(made: Sequence[Row]) -> str:
    """As Markdown."""
    lines = ["| case | contender | per processor second | × | MB | × | also | target |", f"|{'---|' * 8}"]
    for row in made:
        cells = [row.case, row.contender, f"{said(row.speed.median)} {row.unit}"]
        cells += ["{median:.2f} ({min:.2f} to {max:.2f})".format(**asdict(row.speed_ratio))]
        cells += [f"{row.bytes.median / 1e6:,.0f}", f"{row.memory_ratio.median:.2f}"]
        cells += [", ".join(f"{key} {value:,.4g}" for key, value in row.also.items()), row.target]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def marks(folder: Path) -> list[Mark]:
    """Ratios that have a target, each as the newest file in which its case is says, in the order of CASES."""
    newest: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("train-*.json")):
        of_case: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            of_case.setdefault(row["case"], []).append(row)
        newest |= of_case
    made = []
    for name, case in CASES.items():
        if name not in newest:
            continue
        first, second, *_ = newest[name]
        label = f"{name}: {second['contender']} / {first['contender']}"
        if case.speed_min:
            made.append(Mark(label, Spread(**second["speed_ratio"]), case.speed_min))
        if case.memory_max:
            held = second["memory_ratio"]
            turned = Spread(1 / held["max"], 1 / held["median"], 1 / held["min"])
            made.append(Mark(f"{label}, memory", turned, 1 / case.memory_max))
    return made


def main() -> int:
    """Runs the cases, prints the table and keeps the figures; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=CASES, help="a case; may be given again")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds: got {arguments.rounds}; expected 1 or more")
    made: list[Row] = []
    versions: dict[str, str] = {}
    started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    figures: dict[str, dict[str, list[Go]]] = {}
    for name in arguments.only or CASES:
        case = CASES[name]
        print(f"{name}: {case.says}", flush=True)

        goes: dict[str, list[Go]] = {contender: [] for contender in case.contenders}
        for number, contender in turns(list(goes), num_rounds=arguments.rounds):
            gone = go(case.contenders[contender])
            which = f"round {number}/{arguments.rounds}" if number else "warm-up"
            print(f"  {which}: {contender}: {said(gone.speed)} {case.unit} per processor second", flush=True)
            if number:
                goes[contender].append(gone)
        figures[name] = goes
        made += rows(name, case, goes)
        versions |= {key: value for each in goes.values() for key, value in each[0].versions.items()}
    print(f"\n{table(made)}\n")
    print(", ".join(f"{key} {value}" for key, value in (machine() | versions).items()))
    folder = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."), ".plumbline/bench")
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        "schema": 1,
        "machine": machine(),
        "versions": versions,
        "rows": [asdict(row) for row in made],
        "goes": {
            name: {contender: [asdict(each) for each in goes] for contender, goes in of_case.items()}
            for name, of_case in figures.items()
        },
    }
    path = folder / f"train-{started}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    draw(marks(folder), folder / "ratios.png")
    print(f"every figure: {path}; all cases as they came out last: {folder / 'ratios.png'}")
    return 1 if any(row.misses for row in made) else 0


if __name__ == "__main__":
    sys.exit(main())
