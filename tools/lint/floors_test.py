from tools.lint.floors import findings
from tools.lint.tree import expect_none, open_tree


def test_imports_go_down_only() -> None:
    expect_none(findings(open_tree()))
