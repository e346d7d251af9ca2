"""The command line: typed settings in, a plan or a trained model out.

    python -m training sft      --model DIR --data chat.jsonl --out DIR [settings]
    python -m training dpo      --model DIR --data pairs.jsonl --out DIR [settings]
    python -m training grpo     --model DIR --data prompts.jsonl --out DIR [settings]
    python -m training plan dpo --model DIR --data pairs.jsonl --out DIR [settings]

Every setting is a field of `training.config`, spelt `--section.field`, and its help is the docstring under the field:
there is no second list of options to fall behind. A field may be given without its section where that is unambiguous,
with dashes or underscores: `--learning-rate-peak` is `--optimizer.learning_rate_peak`.

torch is imported only once there is a plan to carry out or data to look at, so help and mistakes are answered at once.
"""

import ast
import gc
import inspect
import logging
import os
import shlex
import sys
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from training.config import CONFIGS, RecipeKind, SftConfig
from training.errors import EXIT_INTERRUPTED, PlumblineError
from training.plan import Plan, Refusal, plan

EXIT_KILLED_BY_CTRL_C = 130
"""What a shell expects of a program that Ctrl-C ended; nothing was saved beyond the last checkpoint."""

ENVIRONMENT = {
    # Threads that wait for each other let go of the core. They spin unless told otherwise before torch is imported, and
    # where something else runs too they then starve each other: many times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A terminal that lacks a letter of somebody's data shows its number, and does not end a run.
    "PYTHONIOENCODING": ":backslashreplace",
}
"""What a process that trains and its libraries see, unless the person has set it otherwise."""

COMMANDS = {
    "sft": "Supervised fine-tuning: train a model on conversations or plain text, and export it.",
    "reward": "Train a reward model on pairs of completions of which one was chosen (Bradley-Terry).",
    "dpo": "Learn from pairs of completions of which one was chosen: DPO, IPO, hinge, robust, ORPO or SimPO.",
    "kto": "Learn from completions that are labelled good or bad, one at a time (KTO).",
    "grpo": "Learn from rewards of what the model says: GRPO, with the choices of DAPO, Dr. GRPO and RLOO.",
    "ppo": "Learn from rewards of what the model says, with a critic that learns what to expect: PPO.",
    "plan": "Print what the settings of sft, or of the command named after it (plan dpo), resolve to on this machine, "
    "or why they are refused, and what is in the data, with the first sample as the model will see it; train nothing.",
}

EPILOG = f"""\
short names:
  --model, --data and --out must be given, and nothing else. A setting may leave out its section:
  --samples-per-step 8 is --batch.samples_per_step 8. --lora by itself, or --lora true, trains an
  adapter with default settings.

exit codes:
   0  done, and every export verified          5  a checkpoint cannot be written, found or believed
   2  a setting is impossible, or refused      6  loss or gradient norm not finite; no weight was moved
   3  the data file or one of its samples      7  the export is not the model that was trained
   4  the model cannot be loaded or used       8  a process of several was killed, or failed as its traceback says
  {EXIT_INTERRUPTED}  stopped early and saved; the same command goes on
"""


class _KeepLines(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Wraps the help of options and leaves the lines of the epilog as they are written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code for the shell.

    Args:
        arguments: the words after the program's name; those of this process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if isinstance(sys.stdout, TextIOWrapper):
        # As ENVIRONMENT has it for other processes.
        sys.stdout.reconfigure(errors="backslashreplace")
    # `bazel run` starts programs elsewhere; paths are meant from where the command was typed.
    if typed_in := os.environ.get("BUILD_WORKING_DIRECTORY"):
        os.chdir(typed_in)
    recipe, only_planned = recipe_of(words)
    # `plan dpo …` has the settings of dpo.
    spelt = expanded(words[1:] if words[:2] == ["plan", recipe] else words)
    parsed = parser(*spelt[:1]).parse_args(spelt)
    settings = parsed[parsed.command]
    try:
        return _plan(settings, recipe) if only_planned else _train(settings, recipe, words)
    except PlumblineError as error:
        if settings.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped at once; what came after the last checkpoint is lost", file=sys.stderr)
        return EXIT_KILLED_BY_CTRL_C


def recipe_of(words: Sequence[str]) -> tuple[RecipeKind, bool]:
    """The recipe that the words name, sft if none, and whether they ask for its plan alone."""
    is_plan = words[:1] == ["plan"]
    named = list(words[is_plan : is_plan + 1])
    return next((recipe for recipe in CONFIGS if [recipe] == named), "sft"), is_plan


def _plan(settings: Namespace, recipe: RecipeKind) -> int:
    resolved = _resolved(settings, recipe)
    print(resolved.describe(), flush=True)
    absent = [each for each in (resolved.model_path, resolved.data_path) if not Path(each).expanduser().exists()]
    if absent:
        print(f"first       not shown, since there is no {absent[0]} here")
        return 0
    with _uncollected():
        from training.recipes import look
    print(look(resolved))
    return 0


def _train(settings: Namespace, recipe: RecipeKind, words: Sequence[str]) -> int:
    with _uncollected():
        resolved = _resolved(settings, recipe)
        import transformers

        from training.recipes import train

    # peft calls what this transformers has renamed; whoever trains can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Its bars about loading weights would come between the lines of our own progress.
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it declares no types
    # On CPUs with AVX-512 BF16 bitsandbytes, which peft imports, misses a kernel that nothing here runs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first:
        print(resolved.describe(), flush=True)
    summary = train(resolved)
    if is_first:
        print(summary.describe())
    if summary.is_finished:
        if is_first and summary.stopped_by:
            print(f"over after {summary.num_steps} of {summary.num_steps_planned} steps by {summary.stopped_by}")
        return 0
    done = f"{summary.num_steps} of {summary.num_steps_planned} steps are saved"
    if is_first:
        print(f"stopped by {summary.stopped_by}; {done}. To go on:\n  {resume_command(words)}")
    return EXIT_INTERRUPTED


@contextmanager
def _uncollected() -> Iterator[None]:
    """Looks for no garbage meanwhile, nor later among what is there: of what is imported all stays.

    Looking while it is imported is a tenth of the time that takes, and each look at it later is a third of a second.
    Later runs of one process find it done: what the run before has left, a model perhaps, is not to stay.
    """
    was_looking = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        if was_looking:
            gc.enable()


def _resolved(settings: Namespace, recipe: RecipeKind) -> Plan:
    """The plan for the settings on this machine; raises why there is none."""
    config = to_config(settings, recipe)
    from training.parallel.single import machine

    answer = plan(config, machine())
    if isinstance(answer, Refusal):
        raise answer.as_error()
    return answer


def to_config(settings: Namespace, recipe: RecipeKind = "sft") -> SftConfig:
    """The parsed settings as the dataclasses they stand for; raises ConfigError for an impossible value."""
    values: dict[str, Any] = {}
    for section, hint in get_type_hints(CONFIGS[recipe]).items():
        given = settings[section]
        if given is not None:
            values[section] = _section_type(hint)(**given.as_dict())
    return CONFIGS[recipe](**values)


def resume_command(words: Sequence[str]) -> str:
    """The command that goes on with the run that `words` started, to be typed in the same directory."""
    program = "./bazelw run //training --" if "BUILD_WORKING_DIRECTORY" in os.environ else "python -m training"
    return f"{program} {shlex.join(words)} --resume must"


def parser(named: str | None = None) -> ArgumentParser:
    """The parser of all commands, or of the named one if there is one of that name: each takes time to make."""
    root = ArgumentParser(
        prog="training",
        description="Plumbline trains language models, and shows what it did.",
        epilog=EPILOG,
        formatter_class=_KeepLines,
    )
    made = [named] if named and named in COMMANDS else list(COMMANDS)
    # Its errors name them all, whichever are made.
    every = None if len(made) > 1 else f"{{{','.join(COMMANDS)}}}"
    commands = root.add_subcommands(dest="command", metavar=every)
    for name in made:
        commands.add_subcommand(name, _settings_parser(name, COMMANDS[name]), help=COMMANDS[name])
    return root


def _settings_parser(name: str, says: str) -> ArgumentParser:
    """A parser with one option for each field of the recipe's config, in groups by section."""
    recipe, _ = recipe_of([name])
    made = ArgumentParser(
        description=says,
        epilog=EPILOG,
        usage=f"training {name} --model DIR --data FILE --out DIR [settings]",
        formatter_class=_KeepLines,
    )
    made.add_argument("--config", action="config", help="YAML file of settings; later words on the line override it.")
    made.add_argument("--debug", action="store_true", help="On an error, show where in the code it was raised.")
    for section, hint in get_type_hints(CONFIGS[recipe]).items():
        config = _section_type(hint)
        docs, hints = field_docs(config), get_type_hints(config)
        group = made.add_argument_group(section, " ".join((inspect.getdoc(config) or "").split()))
        if config is not hint:
            each = ". ".join(
                f"{field.name}, {field.default}: {docs[field.name].rstrip('.')}" for field in fields(config)
            )
            group.add_argument(f"--{section}", type=hint, default=None, help=f"Switches it on. {each}.")
            continue
        for field in fields(config):
            required = field.default is MISSING
            group.add_argument(
                f"--{section}.{field.name}",
                type=hints[field.name],
                default=None if required else field.default,
                required=required,
                help=docs[field.name].replace("%", "%%"),
            )
    return made


def _section_type(hint: Any) -> type[Any]:
    """The dataclass of a section, also of one that may be None."""
    return next(each for each in (hint, *get_args(hint)) if isinstance(each, type) and is_dataclass(each))


def field_docs(config: type) -> dict[str, str]:
    """The string that stands under each field of a dataclass, or of one it extends, in one line each."""
    docs: dict[str, str] = {}
    for base in filter(is_dataclass, config.__bases__):
        docs |= field_docs(base)
    definition = _classes(config.__module__)[config.__name__]
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module, as they are written: parsed once, as a class by itself takes as long as its module."""
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    return {each.name: each for each in body if isinstance(each, ast.ClassDef)}


def short_names(recipe: RecipeKind = "sft") -> Mapping[str, str]:
    """The full name of each short one: `run.out` of `out`.

    `model` and `data` stand for the path in their section, `optimizer` for its kind.
    """
    full: dict[str, list[str]] = {}
    for section, hint in get_type_hints(CONFIGS[recipe]).items():
        for field in fields(_section_type(hint)):
            full.setdefault(field.name, []).append(f"{section}.{field.name}")
    unambiguous = {name: names[0] for name, names in full.items() if len(names) == 1}
    return unambiguous | {
        "model": "model.path",
        "data": "data.path",
        "kind": "data.kind",
        "optimizer": "optimizer.kind",
    }


LORA = {"true": "{}", "false": "null"}
"""What the section is given for the words that switch other settings."""


def expanded(words: Sequence[str]) -> list[str]:
    """The words with short names spelt out, dashes in names turned to underscores, and `--lora` alone given a value."""
    names = short_names(recipe_of(words)[0])
    result: list[str] = []
    for word, following in zip(words, [*words, "--"][1:], strict=True):
        if not word.startswith("--"):
            result.append(LORA.get(word, word) if result[-1:] == ["--lora"] else word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name == "lora" and not equals and following.startswith("-"):
            equals, value = "=", "true"
        if name == "lora":
            value = LORA.get(value, value)
        result.append(f"--{names.get(name, name)}{equals}{value}")
    return result
