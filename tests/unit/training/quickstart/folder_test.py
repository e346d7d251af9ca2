from dataclasses import replace
from pathlib import Path

import pytest

from training.errors import ConfigError
from training.quickstart.folder import STATE, State, find_place, read_state

ASKED = State(task="chat", seed=0, seconds=120.0)
HALF_DONE = replace(ASKED, num_steps=50, before=("one", "two\nlines …"))


def made(folder: Path, state: State | None) -> Path:
    folder.mkdir()
    if state:
        state.write(folder)
    return folder


def test_a_free_folder_is_taken_and_nothing_is_said(tmp_path: Path) -> None:
    assert find_place(tmp_path / "q", ASKED) == (place := find_place(tmp_path / "q", ASKED))
    assert (place.folder, place.state, place.said) == (tmp_path / "q", ASKED, "")
    assert not place.folder.exists(), "it is only looked for"
    (made(tmp_path / "q", None) / ".lock").touch()
    assert find_place(tmp_path / "q", ASKED).folder == tmp_path / "q"


def test_the_same_run_unfinished_goes_on_with_what_it_has(tmp_path: Path) -> None:
    folder = made(tmp_path / "q", HALF_DONE)
    place = find_place(folder, ASKED)
    assert (place.folder, place.state) == (folder, HALF_DONE)
    assert place.said == "q holds this run, unfinished: going on where it stopped."


@pytest.mark.parametrize(
    "there",
    [
        replace(HALF_DONE, is_finished=True),
        replace(HALF_DONE, seed=1),
        replace(HALF_DONE, seconds=60.0),
        replace(HALF_DONE, task="from-scratch"),
    ],
)
def test_another_run_is_left_as_it_is(tmp_path: Path, there: State) -> None:
    folder = made(tmp_path / "q", there)
    place = find_place(folder, ASKED)
    assert (place.folder, place.state) == (tmp_path / "q-2", ASKED)
    assert place.said == f"q ({there.describe()}): left as it is. This run goes to q-2."
    assert read_state(folder) == there


def test_files_of_a_person_are_left_as_they_are(tmp_path: Path) -> None:
    (made(tmp_path / "q", None) / "thesis.tex").write_text("mine")
    (tmp_path / "q-2").write_text("a file")
    (made(tmp_path / "q-3", None) / STATE).write_text('{"task": "of another version"}')
    place = find_place(tmp_path / "q", ASKED)
    assert place.folder == tmp_path / "q-4"
    assert place.said.startswith("q (something else), q-2 (something else), q-3 (something else): left as it is.")
    assert (tmp_path / "q" / "thesis.tex").read_text() == "mine"


def test_an_unfinished_run_is_found_behind_a_finished_one(tmp_path: Path) -> None:
    made(tmp_path / "q", replace(HALF_DONE, is_finished=True))
    made(tmp_path / "q-2", HALF_DONE)
    assert find_place(tmp_path / "q", ASKED).folder == tmp_path / "q-2"


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    made(tmp_path / "q", None)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match=r"--out: .*q cannot be read \(Permission denied\); expected a folder"):
        find_place(tmp_path / "q", ASKED)
