from pathlib import Path

import pytest

from tests.unit.tools.lint.planted import told
from tools.lint import floors

GOOD = {
    "training/__init__.py": '"""Here."""\n',
    "training/errors.py": "import json\n",
    "training/config.py": "from training.errors import ConfigError\n",
    "training/data/pack.py": "import numpy as np\nfrom training.errors import DataError\n",
    "training/data/batch.py": "import torch\nfrom training.data.pack import pack\nfrom training.data import example\n",
    "training/models/load.py": "import transformers\nfrom training.data.batch import Batch\n",
    "training/parallel/deepspeed.py": "import torch.distributed\ndef start():\n    import deepspeed\n",
    "training/step.py": "from training.parallel import deepspeed\n",
    "training/loop.py": "from training.step import train_step\n",
    "training/recipes/sft.py": "from training.loop import run\n",
    "training/cli.py": "import jsonargparse\nfrom training.recipes import sft\n",
    "tools/ci/count.py": "import json\n",
    "tests/unit/step_test.py": "import deepspeed\nfrom training.step import train_step\nfrom tools.ci import count\n",
}


@pytest.fixture(autouse=True)
def _small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "LIGHT", {"training.data.pack": "packing is integers"})


def test_a_tree_that_imports_downwards_is_good(tmp_path: Path) -> None:
    assert told(floors.findings, tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        (
            "training/data/batch.py",
            "import torch\nfrom training.models.load import load_model\n",
            "training/data/batch.py:2: data (floor 1) imports training.models.load.load_model (floor 2); "
            "imports go down only. hint: move training.models.load.load_model to floor 0, or this code to floor 3",
        ),
        (
            "training/errors.py",
            "def message():\n    from training.config import SftConfig\n",
            "training/errors.py:2: errors (floor 0) imports training.config.SftConfig (floor 0); imports go down only. "
            "hint: pass the value in, or this code to floor 1",
        ),
        (
            "training/step.py",
            "from training import cli\n",
            "training/step.py:1: step (floor 5) imports training.cli (floor 6); imports go down only. "
            "hint: move training.cli to floor 4, or turn the call around",
        ),
        (
            "training/recipes/dpo.py",
            "from training.recipes.sft import run\n",
            "training/recipes/dpo.py:1: a recipe imports the recipe training.recipes.sft.run. "
            "hint: move what they share to floor 5",
        ),
        (
            "training/config.py",
            "import torch\n",
            "training/config.py:1: floor 0 imports torch, which begins at floor 1. hint: move this code to floor 1",
        ),
        (
            "training/data/batch.py",
            "from torch import distributed\n",
            "training/data/batch.py:1: floor 1 imports torch.distributed, which begins at floor 3. "
            "hint: move this code to floor 3",
        ),
        (
            "training/loop.py",
            "def run():\n    import importlib\n    importlib.import_module('deepspeed')\n",
            "training/loop.py:3: imports deepspeed, which is imported in training/parallel/deepspeed.py only. "
            "hint: call that module",
        ),
        (
            "training/parallel/deepspeed.py",
            "import deepspeed\n",
            "training/parallel/deepspeed.py:1: imports deepspeed when loaded; it takes seconds. "
            "hint: import it inside the function that uses it",
        ),
        (
            "training/step.py",
            "import leftpad\n",
            "training/step.py:1: imports leftpad, which has no floor. hint: add it to WHEELS in tools/lint/floors.py",
        ),
        (
            "training/extras/more.py",
            "import json\n",
            "training/extras/more.py:1: extras has no floor. hint: add it to FLOORS in tools/lint/floors.py",
        ),
        (
            "training/__init__.py",
            "from training.errors import ConfigError\n",
            "training/__init__.py:1: the package itself imports training.errors.ConfigError; every floor runs it. "
            "hint: import it where it is used",
        ),
        (
            "training/step.py",
            "from tests.support import chats\n",
            "training/step.py:1: training imports tests.support.chats; it never imports tests or tools. "
            "hint: move what is shared into training",
        ),
        (
            "tools/ci/count.py",
            "import training.config\n",
            "tools/ci/count.py:1: tools import training.config; they run targets and read files. "
            "hint: call the command, or move the code",
        ),
    ],
)
def test_an_import_out_of_order_is_named_with_its_cure(tmp_path: Path, path: str, text: str, expected: str) -> None:
    assert told(floors.findings, tmp_path, GOOD | {path: text}) == [expected]


def test_a_light_module_never_reaches_torch_by_a_detour(tmp_path: Path) -> None:
    detour = {"training/data/pack.py": "from .batch import Batch\n", "training/data/batch.py": "import torch\n"}
    assert told(floors.findings, tmp_path, GOOD | detour) == [
        "training/data/pack.py:1: reaches torch (training.data.pack → training.data.batch → torch); "
        "packing is integers. hint: import torch where it is used"
    ]


def test_knowing_a_type_of_a_wheel_costs_a_light_module_nothing(tmp_path: Path) -> None:
    typed = {"training/data/pack.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"}
    assert told(floors.findings, tmp_path, GOOD | typed) == []


def test_the_table_of_light_modules_names_files_that_exist(tmp_path: Path) -> None:
    files = {path: text for path, text in GOOD.items() if path != "training/data/pack.py"}
    assert told(floors.findings, tmp_path, files) == [
        "tools/lint/floors.py:1: LIGHT names training.data.pack, which is no file. hint: remove it from the table"
    ]
