"""`./bazelw run //training:quickstart`: see `training.quickstart.command`."""

import sys
from collections.abc import Callable

from training.quickstart.command import main
from training.quickstart.task import Task


def chat() -> Task:
    """The task with the real model, imported when it is wanted: its libraries take seconds."""
    from training.quickstart.chat import chat_task

    return chat_task()


def drawing() -> Callable[..., None] | None:
    """What draws the plot, or None without matplotlib."""
    try:
        from training.quickstart.plot import draw
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        return None
    return draw


if __name__ == "__main__":
    sys.exit(main(None, target="//training:quickstart", chat=chat, drawing=drawing))
