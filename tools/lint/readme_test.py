from tools.lint.readme import findings
from tools.lint.tree import expect_none, open_tree


def test_commands_in_the_documents_exist() -> None:
    expect_none(findings(open_tree()))
