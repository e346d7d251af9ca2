"""A small tree to plant findings in."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tools.lint.tree import Finding, Tree, tree_at

Check = Callable[[Tree], Iterable[Finding]]


def told(check: Check, folder: Path, files: dict[str, str]) -> list[str]:
    """What a check says, as lines, of a tree with these files and no others."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [str(finding) for finding in sorted(check(tree_at(folder)))]
