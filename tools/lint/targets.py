"""The targets that BUILD files declare, read with Python's own parser and without Bazel.

BUILD files here hold calls, strings, lists and dictionaries and no loops (build_files.py sees to that), so their syntax
tree is their meaning, and a check over all of them takes milliseconds where a query would need a Bazel inside a Bazel.
"""

import ast
from dataclasses import dataclass, field

from tools.lint.tree import Tree

#: The kinds of target whose sources are Python that this project wrote.
PYTHON_KINDS = ("py_library", "py_binary", "py_test", "smoke_cells")

#: Those that collect tests. `smoke_cells` runs the same files for each cell of the smoke matrix.
TEST_KINDS = ("py_test", "smoke_cells")

#: Begins the reason for a dependency that is used without being imported.
KEEP = "# keep: "


@dataclass(frozen=True)
class Target:
    """One call with a name. Labels are whole (//package:name), sources are paths from the root, each with its line."""

    label: str
    kind: str
    path: str
    line: int
    srcs: dict[str, int] = field(default_factory=dict)
    deps: dict[str, int] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()


def package_of(path: str) -> str:
    """The package of a BUILD file: training/data for training/data/BUILD.bazel, nothing for the root's."""
    return path.rpartition("/")[0]


def whole_label(label: str, package: str) -> str:
    """A label as Bazel prints it: `:a` and `//x/y` in package p become //p:a and //x/y:y."""
    if label.startswith(("//", "@")):
        return label if ":" in label else f"{label}:{label.rpartition('/')[2]}"
    return f"//{package}:{label.removeprefix(':')}"


def text_of(node: ast.expr | None) -> str | None:
    """The value of a string, or None for any other expression."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def strings(node: ast.expr | None) -> dict[str, int] | None:
    """The strings of a list, a sum of lists or a select over lists, each with its line; None for anything else."""
    match node:
        case None:
            return {}
        case ast.List(elts=elements) if all(text_of(each) is not None for each in elements):
            return {text_of(each) or "": each.lineno for each in elements}
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _union([left, right])
        case ast.Call(func=ast.Name(id="select"), args=[ast.Dict(values=values)]):
            return _union(values)
    return None


def _union(nodes: list[ast.expr]) -> dict[str, int] | None:
    every = [strings(node) for node in nodes]
    return {text: line for each in every if each for text, line in each.items()} if None not in every else None


def calls(syntax: ast.Module) -> list[ast.Call]:
    """The calls of plain functions at the top of a file: targets, loads, package groups."""
    values = [statement.value for statement in syntax.body if isinstance(statement, ast.Expr)]
    return [value for value in values if isinstance(value, ast.Call) and isinstance(value.func, ast.Name)]


def function_of(call: ast.Call) -> str:
    """The name of the function that is called."""
    return call.func.id if isinstance(call.func, ast.Name) else ""


def argument(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument, or None."""
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def targets_of(tree: Tree) -> list[Target]:
    """Every target of every BUILD file that parses. `exports_files` counts as one that has the files it names."""
    found = []
    for path in tree.build_files():
        try:
            syntax = ast.parse(tree.text(path))
        except SyntaxError:
            continue
        lines = tree.text(path).splitlines()
        found += [_target(call, path, lines) for call in calls(syntax) if function_of(call) != "load"]
    return found


def _target(call: ast.Call, path: str, lines: list[str]) -> Target:
    package, kind = package_of(path), function_of(call)
    label = f"//{package}:{text_of(argument(call, 'name')) or kind}"
    sources = strings(call.args[0] if kind == "exports_files" and call.args else argument(call, "srcs")) or {}
    listed = argument(call, "deps")
    deps = strings(listed) or {}
    # The reason stands beside one dependency, or above the list for all of them.
    all_kept = listed is not None and lines[listed.lineno - 2].strip().startswith(KEEP)
    return Target(
        label=label,
        kind=kind,
        path=path,
        line=call.lineno,
        srcs={_file(source, package): line for source, line in sources.items()},
        deps={whole_label(dep, package): line for dep, line in deps.items()},
        kept=frozenset(whole_label(dep, package) for dep, line in deps.items() if all_kept or KEEP in lines[line - 1]),
    )


def _file(source: str, package: str) -> str:
    """The path that a source's label means: `a.py`, `:a.py` and //p:a.py are all p/a.py in package p."""
    where, _, name = whole_label(source, package).removeprefix("//").partition(":")
    return f"{where}/{name}" if where else name
