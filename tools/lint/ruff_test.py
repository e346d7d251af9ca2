from tools.lint.checkers import RUFF_CHECK, RUFF_FORMAT, expect_clean, run_checker
from tools.lint.tree import open_tree


def test_ruff_has_nothing_to_say() -> None:
    expect_clean(run_checker("ruff", *RUFF_CHECK, folder=open_tree().root))


def test_every_file_is_formatted() -> None:
    expect_clean(run_checker("ruff", *RUFF_FORMAT, folder=open_tree().root))
