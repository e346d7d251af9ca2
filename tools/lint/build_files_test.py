from tools.lint.build_files import findings
from tools.lint.tree import expect_none, open_tree


def test_build_files_have_one_style() -> None:
    expect_none(findings(open_tree()))
