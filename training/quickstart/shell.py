"""What the quickstart types for its reader: words of the command line, by the command line's own road to a recipe."""

import os
import shlex

from training import recipes
from training.cli import expanded, parser, to_config
from training.metrics.summary import RunSummary
from training.parallel.single import machine
from training.plan import Refusal, plan


def train(words: list[str]) -> RunSummary:
    """Runs the recipe as the command line does."""
    parsed = parser().parse_args(expanded(words))
    answer = plan(to_config(parsed[parsed.command], parsed.command), machine())
    if isinstance(answer, Refusal):
        raise answer.as_error()
    return recipes.train(answer)


def typed(words: list[str]) -> str:
    """The words as a person types them where this program was started."""
    program = "./bazelw run //training --" if "BUILD_WORKING_DIRECTORY" in os.environ else "python -m training"
    return f"{program} {shlex.join(words)}"


def say(what: str, text: str) -> None:
    """Prints a line of progress of the quickstart itself."""
    print(f"{what:<11} {text}", flush=True)
