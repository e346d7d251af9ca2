"""One planted bug, handed over by the macro planted_bugs as JSON: its guard turns red."""

import json
import os
from pathlib import Path
from typing import Any

from tests.negative.planting import Bug, Guard, caught

ROW: dict[str, Any] = json.loads(os.environ["PLUMBLINE_ROW"])


def test_the_guard_turns_red(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "test"}
    caught(Bug(**row | {"guard": Guard(ROW["guard"], (ROW["test"],))}), tmp_path)
