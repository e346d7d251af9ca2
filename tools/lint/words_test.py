from tools.lint.tree import expect_none, open_tree
from tools.lint.words import findings


def test_no_file_names_one_machine_or_silences_a_check() -> None:
    expect_none(findings(open_tree()))
