"""`./bazelw run //tools/bench:train`: what training costs beside other ways to do the same.

Each case has contenders that do the same work, in processes of their own and in turn (`tools.bench.rounds`), and that
must agree on a number which only that work gives. Speed is work per processor second of one thread: on a shared machine
the clock says what others were doing. Ratios are to the case's first contender; above 1 the others are faster.

Prints a table. Every figure, the versions, the commit and the machine are a line in `.plumbline/bench/train.jsonl` for
each case, which is the history; `ratios.png` beside it shows each case as it came out last. `//tools/bench:publish`
writes the documents from it.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tools.bench.kept import RUNS, Kept, Row, append, newest, of_now, parts_table, read, said, table
from tools.bench.picture import draw, marks, stacks
from tools.bench.rounds import ratios, spread, turns

PACKAGE = Path("tests/benchmark/speed")
AGREE_RELATIVE = 1e-4
"""How far contenders' checks may be apart: they sum in another order, and some take another attention."""


SHAPES = ("5M", "9M, vocabulary of 32k", "25M")


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
    also_ratio_min: dict[str, float | None] = field(default_factory=dict)
    """By name, what else both tell and are compared by, and the least that the ratio should be; None for any."""
    by_clock: bool = False
    """Counts seconds by the clock: where what is waited for is no processor."""

    @property
    def wanted(self) -> dict[str, float]:
        """What its second contender should reach, by name."""
        named = {"speed": self.speed_min, "memory": self.memory_max, **self.also_ratio_min}
        return {name: value for name, value in (named | self.also_min | self.also_max).items() if value is not None}

    def speed(self, gone: "Go") -> float:
        """Work per second."""
        return gone.amount / (gone.seconds if self.by_clock else gone.cpu_seconds)


CASES = {
    **{
        f"step {shape}": Case(
            f"SFT steps of a Llama of {shape}, packed",
            {"bare loop": ("step", "bare", "--shape", shape), "plumbline": ("step", "toolkit", "--shape", shape)},
            "tokens",
            speed_min=0.97,
        )
        for shape in SHAPES
    },
    **{
        f"chat {shape}": Case(
            f"SFT of a Llama of {shape} on ragged conversations, from the file to the last step",
            {
                "TRL, packed": ("trl_chat", "sft", "packed", "--shape", shape),
                "plumbline": ("chat", "sft", "--shape", shape),
                "TRL, padded": ("trl_chat", "sft", "padded", "--shape", shape),
                "plumbline, not packed": ("chat", "sft", "--shape", shape, "--packing", "false"),
            },
            "tokens",
            speed_min=1.8,
        )
        for shape in SHAPES
    },
    **{
        f"pairs {shape}": Case(
            f"DPO of a Llama of {shape}, from the file to the last step",
            {
                "TRL, reference precomputed": ("trl_chat", "dpo", "precomputed", "--shape", shape),
                "plumbline": ("chat", "dpo", "--shape", shape),
                "TRL, padded": ("trl_chat", "dpo", "padded", "--shape", shape),
            },
            "pairs",
            speed_min=1.8,
        )
        for shape in SHAPES
    },
    **{
        f"rewards {shape}": Case(
            f"GRPO of a Llama of {shape}, from the file to the last step",
            {"TRL": ("trl_rewarded", "--shape", shape), "plumbline": ("rewarded", "--shape", shape)},
            "samples",
            speed_min=1.5,
            also_ratio_min={"tokens_drawn_per_second": 2.0, "samples_updated_per_second": None},
        )
        for shape in SHAPES
    },
    **{
        f"ranks {shape}": Case(
            f"SFT of a Llama of {shape} on one, two and four ranks that share each batch",
            {
                f"{number} rank{'' if number == 1 else 's'}": ("ranks", "--ranks", str(number), "--shape", shape)
                for number in (1, 2, 4)
            },
            "tokens",
        )
        for shape in ("5M", "25M")
    },
    "read": Case(
        "conversations read, rendered and tokenized",
        {"TRL": ("trl_read",), "plumbline": ("read",)},
        "samples",
    ),
    **{
        f"{what} {shape}": Case(
            f"a checkpoint of a Llama of {shape} {done}, beside as many bytes in one file",
            {
                f"plain {what}": ("disk", what, "plain", "--shape", shape),
                "plumbline": ("disk", what, "toolkit", "--shape", shape),
            },
            "bytes by the clock",
            by_clock=True,
        )
        for what, done in {"write": "saved", "read": "resumed from"}.items()
        for shape in ("25M",)
    },
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
        speeds = [case.speed(one) for one in each]
        speed_ratio = spread(ratios(speeds, [case.speed(one) for one in goes[first]]))
        # Who holds nothing more than before has no part of it.
        shares = [one.bytes / other.bytes if other.bytes else 0.0 for one, other in zip(each, goes[first], strict=True)]
        memory_ratio = spread(shares)
        also_ratio = {
            key: spread(ratios([one.also[key] for one in each], [one.also[key] for one in goes[first]]))
            for key in case.also_ratio_min
        }
        also = {key: statistics.median(one.also[key] for one in each) for key in each[0].also}
        target = ""
        if contender in others[:1] and case.wanted:
            missed = []
            if case.speed_min and speed_ratio.median < case.speed_min:
                missed.append(f"speed below {case.speed_min:.2f}")
            if case.memory_max and memory_ratio.median > case.memory_max:
                missed.append(f"memory above {case.memory_max:.2f}")
            missed += [
                f"{key} below {least:g} times"
                for key, least in case.also_ratio_min.items()
                if least is not None and also_ratio[key].median < least
            ]
            missed += [f"{key} below {least:g}" for key, least in case.also_min.items() if also[key] < least]
            missed += [f"{key} above {most:g}" for key, most in case.also_max.items() if also[key] > most]
            target = ", ".join(missed) or "met"
        held = spread([one.bytes for one in each])
        wanted = case.wanted if contender in others[:1] else {}
        made.append(
            Row(
                name,
                contender,
                case.unit,
                spread(speeds),
                speed_ratio,
                held,
                memory_ratio,
                also,
                target,
                also_ratio if contender != first else {},
                wanted,
            )
        )
    return made


def main() -> int:
    """Runs the cases, prints the table and keeps the figures; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds after one warm-up (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=CASES, help="a case; may be given again")
    parser.add_argument(
        "--no-warm-up",
        action="store_true",
        help="leave out the round that is not counted: each contender but start and save does its work twice anyway",
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds: got {arguments.rounds}; expected 1 or more")
    workspace = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    made: list[Row] = []
    for name in arguments.only or CASES:
        case = CASES[name]
        print(f"{name}: {case.says}", flush=True)
        goes: dict[str, list[Go]] = {contender: [] for contender in case.contenders}
        for number, contender in turns(list(goes), num_rounds=arguments.rounds):
            if arguments.no_warm_up and not number:
                continue
            gone = go(case.contenders[contender])
            which = f"round {number}/{arguments.rounds}" if number else "warm-up"
            print(f"  {which}: {contender}: {said(case.speed(gone))} {case.unit}", flush=True)
            if number:
                goes[contender].append(gone)
        of_case = rows(name, case, goes)
        versions = {key: value for each in goes.values() for key, value in each[0].versions.items()}
        every = {contender: [asdict(each) for each in gone] for contender, gone in goes.items()}
        kept = Kept(
            name,
            case.says,
            num_rounds=arguments.rounds,
            versions=versions,
            rows=of_case,
            goes=every,
            **of_now(workspace),
        )
        append(workspace / RUNS, kept)
        made += of_case
    print(f"\n{table(made)}\n\n{parts_table(made)}")
    lines = newest(read(workspace / RUNS), list(CASES))
    picture = workspace / RUNS.with_name("ratios.png")
    draw(marks(lines), picture, stacks(lines))
    print(f"every figure: {workspace / RUNS}; all cases as they came out last: {picture}")
    return 1 if any(row.misses for row in made) else 0


if __name__ == "__main__":
    sys.exit(main())
