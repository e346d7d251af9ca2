from pathlib import Path

from tests.unit.tools.lint.planted import told
from tools.lint.deps import findings

LIBRARY = """py_library(
    name = "data",
    srcs = ["batch.py"],
    deps = [
        ":read",
        "//training:errors",
        "@pypi//torch",
    ],
)

py_library(
    name = "read",
    srcs = ["__init__.py", "samples.py"],
)
"""
GOOD = {
    "training/BUILD.bazel": 'py_library(name = "errors", srcs = ["__init__.py", "errors.py"])\n',
    "training/__init__.py": "",
    "training/errors.py": "import json\n",
    "training/data/BUILD.bazel": LIBRARY,
    "training/data/__init__.py": "",
    "training/data/samples.py": "",
    "training/data/batch.py": "import torch.nn\nfrom training import errors\nfrom training.data import samples\n",
    "tests/unit/BUILD.bazel": 'py_test(name = "t", srcs = ["a_test.py"], deps = ["//training/data"])\n',
    "tests/unit/a_test.py": "import pytest\nfrom training.data.batch import Batch\n",
}


def test_targets_that_depend_on_what_they_import_are_good(tmp_path: Path) -> None:
    assert told(findings, tmp_path, GOOD) == []


def test_an_import_without_a_direct_dependency_is_found(tmp_path: Path) -> None:
    files = GOOD | {
        "training/data/samples.py": "from training.errors import DataError\n",
        "tests/unit/a_test.py": "import numpy\nimport yaml\nfrom training.data.batch import Batch\n",
    }
    assert told(findings, tmp_path, files) == [
        "tests/unit/a_test.py:1: imports numpy; //tests/unit:t lacks @pypi//numpy:numpy. hint: add it to deps",
        "tests/unit/a_test.py:2: imports yaml; //tests/unit:t lacks @pypi//pyyaml:pyyaml. hint: add it to deps",
        "training/data/samples.py:1: imports training.errors.DataError; //training/data:read lacks //training:errors. "
        "hint: add it to deps",
    ]


def test_a_dependency_that_nothing_imports_is_found(tmp_path: Path) -> None:
    files = GOOD | {"training/data/batch.py": "from training.data import samples\n"}
    assert told(findings, tmp_path, files) == [
        "training/data/BUILD.bazel:7: //training/data:data does not import @pypi//torch:torch. "
        "hint: remove it, or say what it is for: # keep: …"
    ], "//training:errors stays, because it holds the __init__.py above"


def test_a_dependency_with_another_use_says_so(tmp_path: Path) -> None:
    kept = LIBRARY.replace('"@pypi//torch",', '"@pypi//ruff",  # keep: run as a program\n        "@pypi//torch",')
    assert told(findings, tmp_path, GOOD | {"training/data/BUILD.bazel": kept}) == []
    above = LIBRARY.replace(
        "    deps = [", '    # keep: only weighed\n    deps = [\n        "@pypi//peft",\n        "@pypi//rich",'
    )
    assert told(findings, tmp_path, GOOD | {"training/data/BUILD.bazel": above}) == []


def test_a_type_that_is_only_named_needs_no_dependency(tmp_path: Path) -> None:
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    assert told(findings, tmp_path, GOOD | {"training/data/samples.py": typed}) == []


def test_what_the_macro_adds_is_not_listed(tmp_path: Path) -> None:
    text = 'py_test(name = "t", srcs = ["a_test.py"], deps = ["//training/data", "@pypi//pytest"])\n'
    assert told(findings, tmp_path, GOOD | {"tests/unit/BUILD.bazel": text}) == [
        "tests/unit/BUILD.bazel:1: //tests/unit:t lists @pypi//pytest:pytest; py_test adds it itself. hint: remove it"
    ]
