from pathlib import Path

import pytest

from tests.unit.tools.lint.planted import told
from tools.lint.readme import findings

README = """# Plumbline

    ./bazelw run //training:quickstart      # trains //a/model
    ./bazelw test //...
    ./bazelw run //training -- sft --model //not/a/label

`bazel test //tests/unit/... --config=ci` is for machines, `./bazelw test //tests/smoke:smoke.sft_x2` for one cell,
and //not/in/a/command is only prose. (`./bazelw build //tests/unit:all`)
"""
GOOD = {
    "README.md": README,
    ".bazelrc": "build --x\ntest:ci --y\ncommon:ci --z\ntry-import %workspace%/user.bazelrc\n",
    ".ci/run": "./bazelw test //... --config=ci\n",
    ".github/workflows/ci.yml": "run: .ci/run\n",
    "BUILD.bazel": "",
    "training/BUILD.bazel": 'py_binary(name = "quickstart", srcs = ["q.py"])\npy_binary(name = "training")\n',
    "tests/unit/data/BUILD.bazel": 'py_test(name = "a_test", srcs = ["a_test.py"])\n',
    "tests/unit/BUILD.bazel": "",
    "tests/smoke/BUILD.bazel": 'smoke_matrix(name = "smoke")\n',
}


def test_documents_that_name_what_exists_are_good(tmp_path: Path) -> None:
    assert told(findings, tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        (
            "README.md",
            README + "`./bazelw run //training:quikstart`\n",
            "README.md:9: `run //training:quikstart`: there is no target //training:quikstart. "
            "hint: correct one of the two",
        ),
        (
            "README.md",
            README + "`rl.top_p` is proven by `//tests/unit/data:b_test`, others by `//tests/unit/data:a_test`.\n",
            "README.md:9: `//tests/unit/data:b_test`: there is no target //tests/unit/data:b_test. "
            "hint: name the test that proves it",
        ),
        (
            "docs/testing.md",
            "```\nbazel test //tests/unity/...\n```\n",
            "docs/testing.md:2: `test //tests/unity/...`: no BUILD file at or below tests/unity. "
            "hint: correct one of the two",
        ),
        (
            ".ci/run",
            "./bazelw test //... --config=ci\n./bazelw run //tools/ci:count -- x\n",
            ".ci/run:2: `run //tools/ci:count`: there is no package tools/ci. hint: correct one of the two",
        ),
        (
            "CONTRIBUTING.md",
            "`./bazelw test //... --config=cuda`\n",
            "CONTRIBUTING.md:1: --config=cuda is in no .bazelrc. hint: correct the name, or add the config",
        ),
        (
            ".bazelrc",
            GOOD[".bazelrc"] + "build:rocm --platforms=x\n",
            ".bazelrc:5: --config=rocm is documented nowhere. hint: add a line on it to README.md or docs/",
        ),
        (
            ".ci/run",
            "./bazelw test //tests/unit/... --config=ci\n",
            ".ci/run:1: lacks `./bazelw test //...`. hint: README.md and .ci/run state the same test command",
        ),
    ],
)
def test_a_command_that_does_not_work_is_found(tmp_path: Path, path: str, text: str, expected: str) -> None:
    assert told(findings, tmp_path, GOOD | {path: text}) == [expected]
