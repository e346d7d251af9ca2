from pathlib import Path

import pytest

from tests.unit.tools.lint.planted import told
from tools.lint.build_files import findings

# Left as it is by buildifier 8.2.
GOOD = """load("//p:table.bzl", "ROWS")
load("//tools/bazel:defs.bzl", "py_library", "py_test")

# A comment stays where it is.
exports_files(["data.json"])

package_group(
    name = "floor_1_up",
    packages = [
        "//tests/...",
        "//training/data/...",
    ],
)

py_library(
    name = "data",
    srcs = [
        "a.py",
        "b.py",  # last
    ],
    data = glob(["*.json"]) + glob([
        "b/**",
        "a/**",
    ]),
    visibility = ["//training:floor_1_up"],
    deps = [
        ":z",
        "//training:errors",
        "//training/data",
        "//training/data:read",
        "@pypi//torch",
    ],
)

genrule(
    name = "table",
    outs = ["table.json"],
    cmd = "$(execpath :data) > $@",
    tools = [":data"],
)

py_test(
    name = "data_test",
    size = "small",
    srcs = ["data_test.py"],
    accelerators = [
        "cpu",
        "gpu-amd",
    ],
    env = {
        "B": "1",
        "A": "2",
    },
    deps = [":data"],
)
"""


def test_a_file_that_buildifier_leaves_alone_is_good(tmp_path: Path) -> None:
    good = GOOD.replace(
        'glob([\n        "b/**",\n        "a/**",\n    ])', 'glob([\n        "a/**",\n        "b/**",\n    ])'
    )
    assert told(findings, tmp_path, {"p/BUILD.bazel": good}) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            '"a.py",\n        "b.py"',
            '"b.py",\n        "a.py"',
            "srcs is not sorted, or repeats. hint: write a.py, b.py",
        ),
        ('":z",', '":z",\n        ":z",', "deps is not sorted, or repeats"),
        (
            '"//training:errors",\n        "//training/data"',
            '"//training/data",\n        "//training:errors"',
            "deps is not",
        ),
        (
            'size = "small",\n    srcs = ["data_test.py"],',
            'srcs = ["data_test.py"],\n    size = "small",',
            "out of order",
        ),
        ('["data_test.py"]', "['data_test.py']", "'data_test.py' is in single quotes. hint: use double quotes"),
        ('["data_test.py"]', '["data_test.py", "e_test.py"]', "holds several parts on one line"),
        ('deps = [":data"],\n)', 'deps = [":data"]\n)', "lacks a comma after its last part. hint: add it"),
        ('deps = [":data"],\n)', 'deps = [":data"])', "ends on the line of its last part"),
        ('        "cpu",', '      "cpu",', "begins in column 6; expected 8. hint: indent by 4"),
        (
            '        "cpu",\n        "gpu-amd",',
            '        "cpu", "gpu-amd",',
            "shares its line. hint: one part to a line",
        ),
        (
            '["data_test.py"]',
            '[f for f in ["data_test.py"]]',
            "comprehension in a BUILD file. hint: move it to a tested macro",
        ),
        ('["data_test.py"]', 'glob(["*_test.py"])', "py_test has no plain list of srcs; glob is for data"),
        ("//tools/bazel:defs.bzl", "@rules_python//python:defs.bzl", "expected //tools/bazel:defs.bzl"),
        ("//p:table.bzl", "//q:table.bzl", "loads //q:table.bzl; expected //tools/bazel:defs.bzl"),
        ('"py_library", "py_test"', '"py_test", "py_library"', "sort the names: py_library, py_test"),
        ('    srcs = ["data_test.py"]', '\tsrcs = ["data_test.py"]', "holds a tab or ends in a space"),
        ('    deps = [":data"],\n)\n', '    deps = [":data"],\n)', "expected one newline at the end"),
        ("exports_files(", "for f in []:\n    exports_files(", "For in a BUILD file"),
        ("exports_files(", "exports_files((", "cannot be read"),
    ],
)
def test_each_departure_is_found(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    said = told(findings, tmp_path, {"p/BUILD.bazel": GOOD.replace(old, new, 1)})
    assert any(expected in line for line in said), said


def test_a_file_named_build_is_renamed(tmp_path: Path) -> None:
    assert told(findings, tmp_path, {"p/BUILD": ""}) == [
        "p/BUILD:1: is named BUILD; the others are BUILD.bazel. hint: rename it"
    ]


def test_the_packages_behind_the_door_load_what_it_is_built_from(tmp_path: Path) -> None:
    text = 'load("@rules_python//python:defs.bzl", "py_runtime_pair")\n'
    assert told(findings, tmp_path, {"tools/pypi/debian/BUILD.bazel": text, "tools/bazel/BUILD.bazel": text}) == []
    assert len(told(findings, tmp_path, {"tools/bazelish/BUILD.bazel": text})) == 1
