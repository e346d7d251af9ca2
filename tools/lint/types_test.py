import shutil
from pathlib import Path

from tools.lint.checkers import expect_clean, mypy_arguments, run_checker
from tools.lint.tree import open_tree

# One file with a wrong call, and with a function that only strictness minds.
PLANTED = """
def double(number: int) -> int:
    return 2 * number


def loose(numbers):
    return double("two")
"""


def test_types_agree(tmp_path: Path) -> None:
    expect_clean(run_checker("mypy", *mypy_arguments(tmp_path), folder=open_tree().root))


def test_training_is_strict_and_the_rest_is_checked(tmp_path: Path) -> None:
    shutil.copy(open_tree().root / "pyproject.toml", tmp_path)
    for folder in ("training", "tools", "tests/support"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "planted.py").write_text(PLANTED)
    said = run_checker("mypy", *mypy_arguments(tmp_path / "cache"), folder=tmp_path).stdout.splitlines()
    assert {line.partition(": error")[0] for line in said if "[arg-type]" in line} == {
        "training/planted.py:7",
        "tools/planted.py:7",
        "tests/support/planted.py:7",
    }
    assert [line.partition(": error")[0] for line in said if "[no-untyped-def]" in line] == ["training/planted.py:6"]
