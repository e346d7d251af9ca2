"""The words after `./bazelw run //training:quickstart --`, and what surrounds the run: folder, errors, Ctrl-C."""

import argparse
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from training import cli
from training.errors import EXIT_INTERRUPTED, ConfigError, PlumblineError
from training.quickstart.folder import State, find_place
from training.quickstart.task import Task

EXIT_KILLED_BY_CTRL_C = 130
NAME = "plumbline-quickstart"

ENVIRONMENT = cli.ENVIRONMENT | {
    # Nothing is fetched: whatever is asked of a hub would only be a wait for an answer that is not needed.
    "HF_HUB_OFFLINE": "1",
    # The bars of libraries would come between our own lines.
    "TQDM_DISABLE": "1",
    # A library imports deepspeed unasked, which would report that it found no GPU.
    "DS_ACCELERATOR": "cpu",
}
"""What this process and its libraries see, unless the person has set it otherwise."""


def main(
    words: Sequence[str] | None,
    *,
    target: str,
    chat: Callable[[], Task] | None,
    drawing: Callable[[], Callable[..., None] | None],
) -> int:
    """Runs the quickstart and returns the exit code for the shell.

    Args:
        words: of the command line; those of this process if None.
        target: the Bazel target this was started as, to say how to go on.
        chat: makes the task with the real model; None if this program comes without it, and always starts from scratch.
        drawing: finds what draws the plot, or None if matplotlib is not there.
    """
    given = list(sys.argv[1:] if words is None else words)
    # `bazel run` starts programs elsewhere; the output belongs where the command was typed.
    if typed_in := os.environ.get("BUILD_WORKING_DIRECTORY"):
        os.chdir(typed_in)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    asked = argument_parser(is_always_scratch=chat is None).parse_args(given)
    program = f"./bazelw run {target}" + (" --" if given else "") if typed_in else "python -m training.quickstart"
    again = f"{program} {shlex.join(given)}".rstrip()
    try:
        code = _run(asked, chat, drawing)
    except PlumblineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nStopped; what was done is kept. The same command goes on from there:\n  {again}", file=sys.stderr)
        return EXIT_KILLED_BY_CTRL_C
    if code == EXIT_INTERRUPTED:
        print(f"The same command goes on from there:\n  {again}")
    return code


def _run(
    asked: argparse.Namespace, chat: Callable[[], Task] | None, drawing: Callable[[], Callable[..., None] | None]
) -> int:
    state = State(
        task="from-scratch" if asked.from_scratch or chat is None else "chat", seed=asked.seed, seconds=asked.seconds
    )
    if not 0 < asked.seconds < math.inf:
        raise ConfigError(
            "--seconds", got=f"{asked.seconds:g}", expected="a time above 0 that ends", hint="120 is about two minutes"
        )
    if not 0 <= asked.seed < 2**32:
        raise ConfigError(
            "--seed", got=str(asked.seed), expected="0 or more and below 2**32", hint="any small number will do"
        )
    place = find_place(Path.cwd() / asked.out, state)
    print(f"{'folder':<11} {place.folder}", flush=True)
    if place.said:
        print(f"{'':<11} {place.said}", flush=True)
    # torch and transformers take seconds to import: mistakes in the words are answered before.
    _quiet_libraries()
    from training.quickstart.flow import quickstart
    from training.quickstart.scratch import scratch_task

    task = scratch_task() if chat is None or asked.from_scratch else chat()
    return quickstart(task, place, draw=drawing())


def argument_parser(*, is_always_scratch: bool) -> argparse.ArgumentParser:
    """The few words there are; everything else is a setting of `sft`, which the report names."""
    made = argparse.ArgumentParser(
        prog="quickstart",
        description="Trains a small model on this CPU in minutes, and shows what it learned.",
    )
    made.add_argument(
        "--from-scratch",
        action="store_true",
        help="a tiny random Llama on this Python's own documentation, instead of a real model on real conversations"
        + (" (always so here)" if is_always_scratch else ""),
    )
    made.add_argument(
        "--seconds", type=float, default=120.0, help="time to train, about; set-up and answers add to it (default: 120)"
    )
    made.add_argument("--seed", type=int, default=0, help="start of every random draw (default: 0)")
    made.add_argument(
        "--out",
        default=NAME,
        help=f"folder to write to; one that is not free stays as it is, and NAME-2 is taken (default: {NAME})",
    )
    return made


def _quiet_libraries() -> None:
    """Keeps the libraries' bars and remarks out of a screen that is meant to be read."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b")
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it declares no types
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the same
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
