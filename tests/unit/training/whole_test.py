"""A file is there whole or not at all."""

from pathlib import Path

import pytest

from training.whole import whole, write_whole


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    for text in ("one", "Zwei ⟦2⟧"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_until_all_is_written_the_old_one_is_there_and_a_failure_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    write_whole(path, "old")

    def half() -> None:
        with whole(path) as beside:
            beside.write_text("ne")
            assert path.read_text() == "old"
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        half()
    assert path.read_text() == "old"
