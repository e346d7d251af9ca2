import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import DataError
from training.quickstart import library
from training.quickstart.library import read_modules, split

LONG = "Return what was asked for, and nothing beside it."


def test_the_standard_library_of_this_python_is_enough() -> None:
    modules = read_modules()
    texts = [text for each in modules.values() for text in each]
    assert len(texts) == len(set(texts)), "each text once, so that none is on both sides"
    assert sum(map(len, texts)) > 500_000
    assert any("JSON" in text for text in modules["json/__init__.py"])
    assert not [name for name in modules if name.startswith(("test/", "site-packages/", "idlelib/"))]


def test_nothing_is_imported_to_read_its_documentation() -> None:
    code = (
        "import sys; from training.quickstart.library import read_modules; read_modules(); "
        "sys.exit(' '.join(sys.modules.keys() & {'antigravity', 'this', 'tkinter', 'turtle'}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stderr.strip(), ran.stdout) == ("", ""), "`import this` prints, `import antigravity` opens a browser"


def test_docstrings_of_modules_classes_and_functions_are_found_and_short_ones_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "NUM_DOCUMENTS_MIN", 1)
    (tmp_path / "a.py").write_text(
        f'"""Module. {LONG}"""\nclass A:\n    """Class. {LONG}"""\n    def f(self):\n        """Method. {LONG}"""\n'
        f'async def g():\n    """Coroutine. {LONG}"""\ndef h():\n    """Short."""\nprint("imported")\n'
    )
    (tmp_path / "b.py").write_text(f'"""Module. {LONG}"""\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text(f'"""Test. {LONG}"""\n')
    first_words = {name: [text.split(".")[0] for text in texts] for name, texts in read_modules(tmp_path).items()}
    assert first_words == {"a.py": ["Module", "Class", "Coroutine", "Method"]}


IN_BLOCKS = """
try:
    def f(): "tried"
except OSError:
    def f(): "caught"
else:
    def f(): "not caught"
finally:
    def f(): "at last"
for x in y:
    def f(): "in turn"
else:
    def f(): "after all"
with x:
    def f(): "within"
match x:
    case 1:
        def f(): "matched"
"""


def test_docstrings_in_blocks_of_any_kind_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NUM_DOCUMENTS_MIN", 1)
    monkeypatch.setattr(library, "NUM_CHARACTERS_MIN", 1)
    (tmp_path / "a.py").write_text(IN_BLOCKS)
    (texts,) = read_modules(tmp_path).values()
    assert set(texts) == set(re.findall(r'"(.+)"', IN_BLOCKS))
    assert len(texts) == 8


def test_a_library_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 docstrings in 0 modules; expected at least 200"):
        read_modules(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_the_split_keeps_modules_whole_and_is_the_same_for_the_same_seed(seed: int) -> None:
    modules = {f"m{number}.py": [f"{number} {kind} {LONG}" for kind in "ab"] for number in range(40)}
    training, held_out = split(modules, seed=seed, num_training_max=2000, num_held_out_min=500)
    assert (training, held_out) == split(modules, seed=seed, num_training_max=2000, num_held_out_min=500)
    assert held_out != split(modules, seed=seed + 1, num_training_max=2000, num_held_out_min=500)[1]
    assert not {text.split()[0] for text in training} & {text.split()[0] for text in held_out}
    assert 500 <= sum(map(len, held_out)) < 700
    assert 2000 <= sum(map(len, training)) < 2200
