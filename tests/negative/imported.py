"""A pytest plugin for guards: notes where the first-party modules of their process came from."""

import os
import sys
from pathlib import Path

FIRST_PARTY = ("tests", "tools", "training")


def pytest_sessionfinish() -> None:
    """Writes the file of each imported first-party module, one a line."""
    files = [
        module.__file__
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in FIRST_PARTY and getattr(module, "__file__", None)
    ]
    Path(os.environ["PLUMBLINE_IMPORTED"]).write_text("".join(f"{file}\n" for file in sorted(files)), encoding="utf-8")
