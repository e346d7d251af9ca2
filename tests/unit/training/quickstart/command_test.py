import os
from pathlib import Path

import pytest

from training.quickstart import command
from training.quickstart.command import EXIT_KILLED_BY_CTRL_C, main

TARGET = "//training:quickstart"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUILD_WORKING_DIRECTORY", raising=False)
    for name, value in command.ENVIRONMENT.items():
        monkeypatch.setenv(name, os.environ.get(name, value))


def start(*words: str) -> int:
    return main(words, target=TARGET, chat=None, drawing=lambda: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seconds", "0"), "--seconds: 0; expected a time above 0 that ends. hint: 120 is about two minutes"),
        (("--seconds", "nan"), "--seconds: nan; expected a time above 0"),
        (("--seconds", "inf"), "--seconds: inf; expected a time above 0"),
        (("--seed", "-1"), "--seed: -1; expected 0 or more and below 2**32. hint: any small number will do"),
    ],
)
def test_impossible_words_are_answered_at_once(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert start(*words) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "and nothing was written"


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    assert start("--out", "my run") == EXIT_KILLED_BY_CTRL_C
    said = capsys.readouterr().err
    assert "The same command goes on from there:\n  python -m training.quickstart --out 'my run'" in said
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", os.getcwd())
    assert start() == EXIT_KILLED_BY_CTRL_C
    assert capsys.readouterr().err.endswith("  ./bazelw run //training:quickstart\n")
    assert start("--seed", "1") == EXIT_KILLED_BY_CTRL_C
    assert capsys.readouterr().err.endswith("  ./bazelw run //training:quickstart -- --seed 1\n")


def test_the_folder_lies_where_the_command_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed_in = tmp_path / "elsewhere"
    typed_in.mkdir()
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(typed_in))
    monkeypatch.setattr(command, "_quiet_libraries", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    start()
    assert f"folder      {typed_in / 'plumbline-quickstart'}\n" in capsys.readouterr().out
