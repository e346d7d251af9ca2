"""How BUILD files look: one door for rules, no loops, and the layout that buildifier would give them.

A file of the package itself may be loaded too: that is a table, such as the generated one of smoke cells.

Buildifier is no wheel, so it cannot be counted on to be there. This check knows the few of its rules that our BUILD
files, being calls of lists of strings, can break; `//tools/lint:fix` calls buildifier itself where it is installed.
Layouts of other expressions are buildifier's to judge.
"""

import ast
import io
import tokenize
from collections.abc import Iterator

from tools.lint.targets import PYTHON_KINDS, argument, calls, function_of, package_of, strings, text_of
from tools.lint.tree import Finding, Tree

DOOR = "//tools/bazel:defs.bzl"

#: Packages in which the door itself is built, from rules and toolchains that nobody else may load.
BEHIND_THE_DOOR = ("tools/bazel/", "tools/pypi/", "tools/pools/")

#: Lists in which order means nothing, so that it may as well be the alphabet's.
SORTED = ("data", "deps", "includes", "packages", "srcs", "tags", "tests", "visibility")

#: Arguments that do not stand in alphabetical order: these first, deps last.
PLACE = {"name": -6, "size": -5, "timeout": -4, "testonly": -3, "src": -2, "srcs": -2, "outs": -1, "deps": 1}

LOOPS = (ast.For, ast.While, ast.If, ast.FunctionDef, ast.comprehension, ast.Lambda)

Problem = tuple[int, str, str]
"""A line, a message and a hint."""


def findings(tree: Tree) -> Iterator[Finding]:
    """Everything in the BUILD files that breaks the rules above, with what to write instead."""
    for path in tree.build_files():
        text = tree.text(path)
        if not path.endswith(".bazel"):
            yield Finding(path, 1, "is named BUILD; the others are BUILD.bazel", "rename it")
        try:
            syntax = ast.parse(text)
        except SyntaxError as error:
            yield Finding(path, error.lineno or 1, f"cannot be read: {error.msg}", "loops and logic live in macros")
            continue
        for problem in [*_rules(syntax, package_of(path)), *_layout(syntax, text), *_characters(text)]:
            yield Finding(path, *problem)


def _rules(syntax: ast.Module, package: str) -> Iterator[Problem]:
    for node in ast.walk(syntax):
        if isinstance(node, LOOPS):
            line = node.target.lineno if isinstance(node, ast.comprehension) else node.lineno
            yield line, f"{type(node).__name__} in a BUILD file", "move it to a tested macro"
    for call in calls(syntax):
        if function_of(call) == "load":
            yield from _load(call, package)
        else:
            yield from _target(call)


def _load(call: ast.Call, package: str) -> Iterator[Problem]:
    names = [text_of(argument) or "" for argument in call.args]
    is_table = names[0].startswith(f"//{package}:")
    if names[0] != DOOR and not is_table and not f"{package}/".startswith(BEHIND_THE_DOOR):
        yield call.lineno, f"loads {names[0]}; expected {DOOR}", "export from there what you need"
    if names[1:] != sorted(names[1:]):
        yield call.lineno, f"loads {', '.join(names[1:])}", f"sort the names: {', '.join(sorted(names[1:]))}"


def _target(call: ast.Call) -> Iterator[Problem]:
    kind = function_of(call)
    order = [keyword.arg or "" for keyword in call.keywords]
    wanted = sorted(order, key=lambda name: (PLACE.get(name, 0), name))
    if order != wanted:
        yield call.lineno, f"{kind} has its arguments out of order", f"write {', '.join(wanted)}"
    if kind in PYTHON_KINDS and not strings(argument(call, "srcs")):
        yield call.lineno, f"{kind} has no plain list of srcs; glob is for data", "name each file"
    for keyword in call.keywords:
        for node in ast.walk(keyword.value) if keyword.arg in SORTED else ():
            if isinstance(node, ast.List):
                items = [text for each in node.elts if (text := text_of(each)) is not None]
                wanted = sorted(set(items), key=_label_key)
                if items != wanted:
                    yield node.lineno, f"{keyword.arg} is not sorted, or repeats", f"write {', '.join(wanted)}"


def _label_key(label: str) -> tuple[int, list[str], str]:
    """Files, then labels of this package, of this repository, of others; a package before what is in it."""
    phase = next((number for number, start in ((1, ":"), (2, "//"), (3, "@")) if label.startswith(start)), 0)
    return phase, label.replace(":", ".").split("."), label


def _layout(syntax: ast.Module, text: str) -> Iterator[Problem]:
    lines = text.splitlines()
    for node in ast.walk(syntax):
        match node:
            case ast.List():
                parts: list[ast.expr | ast.keyword] = list(node.elts)
            case ast.Dict():
                parts = [key for key in node.keys if key]
            case ast.Call():
                parts = [*node.args, *node.keywords]
            case _:
                continue
        first, last = node.lineno, node.end_lineno or node.lineno
        if first == last and len(parts) > 1 and (not isinstance(node, ast.Call) or argument(node, "name")):
            yield first, "holds several parts on one line", "one part to a line, each ending in a comma"
        if first == last or not parts or parts[0].lineno == first:
            continue
        indent = len(lines[first - 1]) - len(lines[first - 1].lstrip()) + 4
        for part, before in zip(parts, [None, *parts], strict=False):
            if before and part.lineno == before.end_lineno:
                yield part.lineno, "shares its line", "one part to a line"
            elif part.col_offset != indent:
                yield part.lineno, f"begins in column {part.col_offset}; expected {indent}", "indent by 4"
        if lines[last - 1].strip()[0] not in ")]}":
            yield last, "ends on the line of its last part", "a comma, and the bracket on its own line"


def _characters(text: str) -> Iterator[Problem]:
    before = tokenize.TokenInfo(tokenize.OP, "(", (0, 0), (0, 0), "")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            continue
        if token.string.startswith("'"):
            yield token.start[0], f"{token.string} is in single quotes", "use double quotes"
        if token.string in (")", "]", "}") and token.start[0] > before.end[0] and before.string not in ",([{":
            yield before.end[0], "lacks a comma after its last part", "add it"
        before = token
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line or line != line.rstrip():
            yield number, "holds a tab or ends in a space", "indent by 4 spaces"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield text.count("\n"), "expected one newline at the end", "add or remove lines there"
