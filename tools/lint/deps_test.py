from tools.lint.deps import findings
from tools.lint.tree import expect_none, open_tree


def test_dependencies_are_the_imports() -> None:
    expect_none(findings(open_tree()))
