"""One process to a run: two that write checkpoints into one directory would each clear away the other's."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import CheckpointError, ConfigError


@contextmanager
def only_process(out: Path) -> Iterator[None]:
    """Holds the run's directory, made if absent. The system lets go of it however the process ends.

    Raises:
        CheckpointError: another process holds it.
        ConfigError: the directory cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise ConfigError(
            "run.out",
            got=f"{out} cannot be written ({error})",
            expected="a directory to write to, or a place to make one",
            hint="choose another --out",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                str(out),
                got="another process is training there",
                expected="one process to a run",
                hint="wait for it, stop it, or choose another --out",
            ) from None
        yield
