"""What a target imports is what it depends on, both ways.

A missing dependency works only as long as somebody else brings it; a needless one makes tests slow, because whatever it
brings enters their sandbox, and makes them run again for nothing.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator

from tools.lint.imports import FIRST_PARTY, Import, imports_of, module_of, source_of
from tools.lint.targets import PYTHON_KINDS, TEST_KINDS, Target, targets_of
from tools.lint.tree import Finding, Tree

#: The macro adds these itself.
IMPLIED = {kind: {"@pypi//pytest:pytest"} for kind in TEST_KINDS}

#: The locks that wheels come from.
HUBS = ("pypi", "pypi_benchmark", "pypi_harness", "pypi_kernels", "pypi_peers", "pypi_quickstart", "pypi_schemas")

#: Import name to the wheel's name in labels, where they differ.
WHEEL_NAMES = {"PIL": "pillow", "yaml": "pyyaml"}


def findings(tree: Tree) -> Iterator[Finding]:
    """Imports that no direct dependency covers, and dependencies that no import uses.

    A dependency that is used in another way (run as a program, found as a plugin) says so: `# keep: why` on its line,
    or on the line above the list for all of them.
    """
    targets = [target for target in targets_of(tree) if target.kind in PYTHON_KINDS]
    modules = {module_of(path): path for path in tree.python(*FIRST_PARTY)}
    providers: defaultdict[str, set[str]] = defaultdict(set)
    for target in targets:
        for source in target.srcs:
            providers[source].add(target.label)
    for target in targets:
        yield from _of(target, tree, modules, providers)


def _of(target: Target, tree: Tree, modules: dict[str, str], providers: dict[str, set[str]]) -> Iterator[Finding]:
    used = set(target.kept) | _package_files(target, providers)
    for path in target.srcs:
        if path not in tree.files or not path.endswith(".py"):
            continue
        for found in imports_of(tree, path):
            labels = _labels(found, target, modules, providers)
            used |= labels
            if found.typing_only or not labels or labels & (target.deps.keys() | IMPLIED.get(target.kind, set())):
                continue
            yield Finding(
                path, found.line, f"imports {found.full}; {target.label} lacks {min(labels)}", "add it to deps"
            )
    for dep, line in target.deps.items():
        if dep in IMPLIED.get(target.kind, set()):
            yield Finding(target.path, line, f"{target.label} lists {dep}; {target.kind} adds it itself", "remove it")
        elif dep not in used:
            hint = "remove it, or say what it is for: # keep: …"
            yield Finding(target.path, line, f"{target.label} does not import {dep}", hint)


def _labels(found: Import, target: Target, modules: dict[str, str], providers: dict[str, set[str]]) -> set[str]:
    """The targets that would satisfy an import; none if the target holds it itself or it is the language's own."""
    source = source_of(found, modules)
    if source:
        return set() if source in target.srcs else providers.get(source, set())
    if found.top in FIRST_PARTY or found.top in sys.stdlib_module_names:
        return set()
    wheel = WHEEL_NAMES.get(found.top, found.top)
    return {f"@{hub}//{wheel}:{wheel}" for hub in HUBS}


def _package_files(target: Target, providers: dict[str, set[str]]) -> set[str]:
    """The targets that hold the __init__.py above a target's sources: importing a module runs these."""
    folders = {"/".join(path.split("/")[:depth]) for path in target.srcs for depth in range(1, path.count("/") + 1)}
    return {label for folder in folders for label in providers.get(f"{folder}/__init__.py", set())}
