from pathlib import Path

from tests.unit.tools.lint.planted import told
from tools.lint.orphans import findings

GOOD = {
    "training/data/BUILD.bazel": 'py_library(name = "data", srcs = ["pack.py"])\n',
    "training/data/pack.py": "",
    "tests/__init__.py": '"""Tests."""\n',
    "tests/unit/BUILD.bazel": 'py_test(name = "pack_test", srcs = [":pack_test.py"])\n',
    "tests/unit/pack_test.py": "def test_it() -> None: ...\n",
    "tools/ci/BUILD.bazel": 'exports_files(["script.py"])\n',
    "tools/ci/script.py": "",
}


def test_a_tree_whose_files_all_have_a_target_is_good(tmp_path: Path) -> None:
    assert told(findings, tmp_path, GOOD) == []


def test_a_test_file_in_no_test_is_found(tmp_path: Path) -> None:
    files = GOOD | {"tests/unit/plan_test.py": "", "tools/ci/count_test.py": ""}
    assert told(findings, tmp_path, files) == [
        "tests/unit/plan_test.py:1: is in no py_test; expected exactly one py_test. "
        "hint: list it once, in tests/unit/BUILD.bazel",
        "tools/ci/count_test.py:1: is in no py_test; expected exactly one py_test. "
        "hint: list it once, in tools/ci/BUILD.bazel",
    ]


def test_the_file_that_every_smoke_cell_runs_is_in_a_test(tmp_path: Path) -> None:
    cells = {"tests/unit/BUILD.bazel": 'smoke_cells(name = "smoke", srcs = ["pack_test.py"])\n'}
    assert told(findings, tmp_path, GOOD | cells) == []


def test_a_test_file_in_a_library_is_not_in_a_test(tmp_path: Path) -> None:
    library = {"tests/unit/BUILD.bazel": 'py_library(name = "pack_test", srcs = ["pack_test.py"])\n'}
    assert "is in no py_test" in told(findings, tmp_path, GOOD | library)[0]


def test_a_test_file_in_two_tests_is_found(tmp_path: Path) -> None:
    twice = {
        "tests/unit/BUILD.bazel": 'py_test(name = "a", srcs = ["pack_test.py"])\n'
        'py_test(name = "b", srcs = select({"x": ["pack_test.py"], "y": []}) + ["//tests/unit:pack_test.py"])\n'
    }
    assert told(findings, tmp_path, GOOD | twice) == [
        "tests/unit/pack_test.py:1: is in 2 py_tests (//tests/unit:a, //tests/unit:b); expected exactly one py_test. "
        "hint: list it once, in tests/unit/BUILD.bazel"
    ]


def test_a_test_file_that_a_macro_names_is_in_its_tests(tmp_path: Path) -> None:
    files = GOOD | {
        "tests/unit/row_test.py": "def test_the_row() -> None: ...\n",
        "tests/unit/BUILD.bazel": GOOD["tests/unit/BUILD.bazel"] + 'exports_files(["row_test.py"])\n',
        "tools/bazel/defs.bzl": '_py_test(srcs = ["//tests/unit:row_test.py"])\n',
    }
    assert told(findings, tmp_path, files) == []
    without = {path: text for path, text in files.items() if path != "tools/bazel/defs.bzl"}
    (tmp_path / "tools/bazel/defs.bzl").unlink()
    assert "tests/unit/row_test.py:1: is in no py_test" in told(findings, tmp_path, without)[0]


def test_a_module_without_a_target_is_found(tmp_path: Path) -> None:
    assert told(findings, tmp_path, GOOD | {"training/data/read.py": ""}) == [
        "training/data/read.py:1: is in no target, so nothing checks or ships it. "
        "hint: list it once, in training/data/BUILD.bazel"
    ]


def test_a_source_that_does_not_exist_is_found(tmp_path: Path) -> None:
    gone = {"training/data/BUILD.bazel": 'py_library(\n    name = "data",\n    srcs = ["gone.py", "pack.py"],\n)\n'}
    assert told(findings, tmp_path, GOOD | gone) == [
        "training/data/BUILD.bazel:3: //training/data:data lists training/data/gone.py, which does not exist. "
        "hint: remove it"
    ]


def test_a_test_function_outside_a_test_is_found(tmp_path: Path) -> None:
    helper = {
        "tests/unit/BUILD.bazel": GOOD["tests/unit/BUILD.bazel"]
        + 'py_library(name = "help", srcs = ["help.py"], testonly = True)\n',
        "tests/unit/help.py": "import json\n\n\nasync def test_it() -> None: ...\n",
    }
    assert told(findings, tmp_path, GOOD | helper) == [
        "tests/unit/help.py:4: is a test that is never collected. hint: move it to a file named *_test.py"
    ]


def test_a_package_file_with_code_needs_a_target(tmp_path: Path) -> None:
    assert (
        "tests/__init__.py:1: is in no target" in told(findings, tmp_path, GOOD | {"tests/__init__.py": "x = 1\n"})[0]
    )
