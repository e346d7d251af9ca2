"""Which part of training/ may import which: the table of floors, and what breaks it.

Imports go down only, so that the maths can be tested without a process group and the configuration without torch.
Bazel's visibility enforces the same for whole packages; this check also sees modules that share a package (plan.py and
loop.py) and imports of wheels, and says where to move the code.
"""

import sys
from collections.abc import Iterator

from tools.lint.imports import FIRST_PARTY, Import, imports_of, module_of, source_of
from tools.lint.tree import Finding, Tree

THIS = "tools/lint/floors.py"

#: Each part of training/, by the name after `training.`; the parts of one floor never import each other.
FLOORS = {
    "errors": 0,
    "config": 0,
    "plan": 0,
    "schedule": 0,
    "whole": 0,
    "data": 1,
    "algorithms": 1,
    "imports": 1,
    "metrics": 1,
    "optimizer": 1,
    "models": 2,
    "parallel": 3,
    "rollout": 4,
    "checkpoint": 4,
    "step": 5,
    "loop": 5,
    "reading": 5,
    "recipe": 5,
    "reference": 5,
    "run": 5,
    "recipes": 6,
    "cli": 6,
    "__main__": 6,
    "quickstart": 6,
}

#: The exceptions: on these floors one part is built from another, in this direction only.
SIDEWAYS = {
    ("config", "errors"),
    ("schedule", "errors"),
    ("schedule", "config"),
    ("plan", "errors"),
    ("plan", "config"),
    ("plan", "schedule"),
    ("optimizer", "imports"),
    ("loop", "step"),
    ("run", "loop"),
    ("run", "step"),
    ("run", "reading"),
    ("run", "recipe"),
    ("run", "reference"),
    ("reading", "recipe"),
    ("cli", "recipes"),
    ("__main__", "cli"),
    ("quickstart", "cli"),
    ("quickstart", "recipes"),
}

#: The lowest floor from which a wheel may be imported. Floor 0 has none: that is what keeps most unit tests light.
WHEELS = {
    "bitsandbytes": 1,
    "numpy": 1,
    "rich": 1,
    "torch": 1,
    "jinja2": 2,
    "peft": 2,
    "safetensors": 2,
    "tokenizers": 2,
    "transformers": 2,
    "deepspeed": 3,
    "torch.distributed": 3,
    "jsonschema": 4,
    "referencing": 4,
    "gguf": 6,
    "jsonargparse": 6,
    "matplotlib": 6,
    "yaml": 6,
}

#: The one file for a wheel that takes seconds to import and may then build C++: even there, inside functions only.
ALONE_IN = {"deepspeed": "training/parallel/deepspeed.py"}

#: Modules above floor 0 that promise to stay light: loading one does not load torch, by whatever detour.
LIGHT = {
    "training.data.samples": "a file of samples is checked without training",
    "training.data.example": "rendering and packing stand on it",
    "training.data.render": "numpy and the tokenizer's own methods are enough",
    "training.data.pack": "packing is plain integers",
    "training.cli": "help, a plan and its refusals are there at once",
    "training.metrics.records": "the records of a run are read without torch",
}


Problem = tuple[str, str] | None
"""A message and a hint, or nothing to say."""


def findings(tree: Tree) -> Iterator[Finding]:
    """Every import that goes up, sideways or out of the project's rules."""
    modules = {module_of(path): path for path in tree.python(*FIRST_PARTY)}
    for path in tree.python("training", "tools"):
        for found in imports_of(tree, path):
            problem = _training(path, found) if path.startswith("training/") else _tools(found)
            if problem:
                yield Finding(path, found.line, *problem)
    for module, why in LIGHT.items():
        if module not in modules:
            yield Finding(THIS, 1, f"LIGHT names {module}, which is no file", "remove it from the table")
        elif route := _route_to_torch(tree, modules, module):
            yield Finding(modules[module], 1, f"reaches torch ({route}); {why}", "import torch where it is used")


def _tools(found: Import) -> Problem:
    if found.top != "training":
        return None
    return f"tools import {found.full}; they run targets and read files", "call the command, or move the code"


def _training(path: str, found: Import) -> Problem:
    part = _part_of(module_of(path))
    if found.top in ("tests", "tools"):
        return f"training imports {found.full}; it never imports tests or tools", "move what is shared into training"
    if not part:
        return f"the package itself imports {found.full}; every floor runs it", "import it where it is used"
    if part not in FLOORS:
        return f"{part} has no floor", f"add it to FLOORS in {THIS}"
    if found.top == "training":
        return _step(part, path, found)
    return None if found.top in sys.stdlib_module_names else _wheel(FLOORS[part], path, found)


def _step(part: str, path: str, found: Import) -> Problem:
    """What is wrong with an import of one part of training by another."""
    other = _part_of(found.full)
    if part == other == "recipes" and not path.endswith("/__init__.py"):
        return f"a recipe imports the recipe {found.full}", "move what they share to floor 5"
    if other in ("", part) or (part, other) in SIDEWAYS:
        return None
    if other not in FLOORS:
        return f"imports {found.full}, which has no floor", f"add it to FLOORS in {THIS}"
    floor, above = FLOORS[part], FLOORS[other]
    if above < floor:
        return None
    down = f"move {found.full} to floor {floor - 1}" if floor else "pass the value in"
    up = f"this code to floor {above + 1}" if above < max(FLOORS.values()) else "turn the call around"
    return f"{part} (floor {floor}) imports {found.full} (floor {above}); imports go down only", f"{down}, or {up}"


def _wheel(floor: int, path: str, found: Import) -> Problem:
    """What is wrong with an import of a wheel from a floor."""
    if found.top not in WHEELS:
        return f"imports {found.top}, which has no floor", f"add it to WHEELS in {THIS}"
    only = ALONE_IN.get(found.top)
    if only and path != only:
        return f"imports {found.top}, which is imported in {only} only", "call that module"
    if only and not (found.lazy or found.typing_only):
        return f"imports {found.top} when loaded; it takes seconds", "import it inside the function that uses it"
    parts = found.full.split(".")
    needed, wheel = max(
        (WHEELS.get(".".join(parts[:end]), 0), ".".join(parts[:end])) for end in range(1, len(parts) + 1)
    )
    if floor < needed and not found.typing_only:
        return f"floor {floor} imports {wheel}, which begins at floor {needed}", f"move this code to floor {needed}"
    return None


def _part_of(module: str) -> str:
    """The part of training/ that a module belongs to: `data` for training.data.pack, nothing for training itself."""
    return module.split(".")[1] if "." in module else ""


def _route_to_torch(tree: Tree, modules: dict[str, str], start: str) -> str | None:
    """How a module comes to import torch when it is loaded, as `a → b → torch`, or None."""
    routes = {start: start}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for found in imports_of(tree, modules[module]):
            if found.lazy or found.typing_only:
                continue
            if found.top == "torch":
                return f"{routes[module]} → torch"
            source = source_of(found, modules)
            if source and (name := module_of(source)) not in routes:
                routes[name] = f"{routes[module]} → {name}"
                waiting.append(name)
    return None
