"""What a Python file imports, read from its syntax and never by importing it.

Imports inside functions count like any other: they bring the same dependency, only later. Imports under TYPE_CHECKING
are marked, because they cost nothing at run time; whoever asks decides whether knowing a type is already too much.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from tools.lint.tree import Tree

FIRST_PARTY = ("tests", "tools", "training")


@dataclass(frozen=True)
class Import:
    """One imported name: `from training.data import pack` gives module training.data and name pack."""

    module: str
    name: str | None
    line: int
    lazy: bool = False
    typing_only: bool = False

    @property
    def top(self) -> str:
        """The first part of the module: the distribution or the folder that it comes from."""
        return self.module.partition(".")[0]

    @property
    def full(self) -> str:
        """Module and name together: what the import may mean, if the name is a module itself."""
        return f"{self.module}.{self.name}" if self.name else self.module


def module_of(path: str) -> str:
    """The dotted name of a file: a/b.py is a.b, and a/__init__.py is a."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(tree: Tree, path: str) -> list[Import]:
    """Every import of a file, in order, relative ones made absolute; none if its syntax is broken (ruff says so)."""
    try:
        syntax = ast.parse(tree.text(path))
    except SyntaxError:
        return []
    package = module_of(path) if path.endswith("/__init__.py") else module_of(path).rpartition(".")[0]
    return list(_walk(syntax, package, lazy=False, typing_only=False))


def _walk(node: ast.AST, package: str, *, lazy: bool, typing_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import():
                for alias in child.names:
                    yield Import(alias.name, None, child.lineno, lazy, typing_only)
            case ast.ImportFrom():
                parents = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                module = ".".join([*parents, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, lazy, typing_only)
            case ast.Call(func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module")):
                if child.args and isinstance(child.args[0], ast.Constant) and isinstance(child.args[0].value, str):
                    yield Import(child.args[0].value, None, child.lineno, lazy, typing_only)
            case _:
                pass
        yield from _walk(
            child,
            package,
            lazy=lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
            typing_only=typing_only or _is_type_checking(child),
        )


def _is_type_checking(node: ast.AST) -> bool:
    """An `if TYPE_CHECKING:` without an else, whose body no interpreter runs."""
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test).endswith("TYPE_CHECKING")


def source_of(found: Import, modules: dict[str, str]) -> str | None:
    """The first-party file that an import brings in, or None. `modules` maps each dotted name to its file."""
    return modules.get(found.full) or modules.get(found.module)
