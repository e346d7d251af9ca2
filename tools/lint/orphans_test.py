from tools.lint.orphans import findings
from tools.lint.tree import expect_none, open_tree


def test_no_file_is_without_a_target() -> None:
    expect_none(findings(open_tree()))
