from pathlib import Path

import pytest

from tests.unit.tools.lint.planted import told
from tools.lint.words import findings


def test_ordinary_words_are_good(tmp_path: Path) -> None:
    files = {
        "bazelw": '#!/usr/bin/env bash\ncache="$HOME/.cache"; scratch="${TMPDIR:-/tmp}"\n',
        "docs/testing.md": "Under https://example.com/home/page, and in training/work/notes.\n",
        "tools/a.py": "import b  # noqa: E402 - the path is first\nx = y  # type: ignore[arg-type]  # old stubs\n",
        "training/logo.bin": "/ho" + "me/somebody\n",
    }
    assert told(findings, tmp_path, files) == []


@pytest.mark.parametrize(
    "path", ["/ho" + "me/ann/plumbline", "/tm" + "p/x.json", "/ro" + "ot/.cache", "/Use" + "rs/ann"]
)
def test_a_path_of_one_machine_is_found(tmp_path: Path, path: str) -> None:
    assert told(findings, tmp_path, {"docs/a.md": f"\nsee {path}\n"}) == [
        f"docs/a.md:2: names {path}, a path of one machine. hint: derive it when it is needed"
    ]


@pytest.mark.parametrize(
    "host", ["py" + "pi.org", "files.python" + "hosted.org", "registry.npm" + "js.org", "deb.deb" + "ian.org"]
)
def test_a_package_host_is_found(tmp_path: Path, host: str) -> None:
    assert told(findings, tmp_path, {".bazelrc": f"# from https://{host}/simple\n"}) == [
        f".bazelrc:1: names the host {host}. hint: leave the index to the machine's configuration"
    ]


@pytest.mark.parametrize(
    "comment", ["# no" + "qa", "# no" + "qa: E501, N802", "# type: " + "ignore[arg-type]", "# fmt: " + "off"]
)
def test_a_silenced_check_without_a_reason_is_found(tmp_path: Path, comment: str) -> None:
    assert told(findings, tmp_path, {"tools/a.py": f"x = 1  {comment}\n"}) == [
        f"tools/a.py:1: silences a check: {comment}. hint: say why beside it: # … - because"
    ]


def test_a_way_to_learn_is_found_where_none_is_known(tmp_path: Path) -> None:
    files = {
        "training/step.py": "# Policies offload preferred rewarding parts.\n",
        "training/parallel/a.py": 'def backward():\n    if plan.recipe == "grpo":\n',
        "training/run.py": "# sft\n",
    }
    assert told(findings, tmp_path, files) == [
        "training/parallel/a.py:2: names grpo, one way to learn of several. hint: have the recipe decide it"
    ]
