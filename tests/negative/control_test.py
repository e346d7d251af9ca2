"""The guards of one target, handed over by the macro planted_bugs as JSON: without a bug, the copy is green."""

import json
import os
from pathlib import Path
from typing import Any

from tests.negative.planting import Guard, green

ROW: dict[str, Any] = json.loads(os.environ["PLUMBLINE_ROW"])


def test_the_guards_are_green_where_nothing_is_planted(tmp_path: Path) -> None:
    green(Guard(ROW["guard"], tuple(ROW["tests"])), tmp_path)
