"""Commands in the documentation that exist: a README is the first program that a newcomer runs.

Every target, package and --config that the documents, .ci/run and the workflows name in a command must be there, every
test that a document names as proof, and every config of .bazelrc must be in the documents. The test command of .ci/run
is the README's: what is proven is what people type.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tools.lint.targets import package_of, targets_of
from tools.lint.tree import Finding, Tree

COMMAND = re.compile(
    r"(?<![\w/.-])(?:\./bazelw|bazel|bazelisk) (?P<verb>[ac]?query|build|run|test)\b(?P<rest>[^`\n#|;&>]*)"
)
PROOF = re.compile(r"`(//[\w/.-]+:\w+_test)`")
CONFIG = re.compile(r"--config[= ]([a-z][\w-]*)")
RC_CONFIG = re.compile(r"^(?:[ac]?query|build|common|run|test):([a-z][\w-]*)(?=\s)", re.MULTILINE)
TEST_EVERYTHING = "./bazelw test //..."


@dataclass(frozen=True)
class Command:
    """One command in a text, without what follows `--` (that is the program's own)."""

    path: str
    line: int
    verb: str
    labels: tuple[str, ...]


def findings(tree: Tree) -> Iterator[Finding]:
    """Commands that name what is not there, configs that nobody explains, and a CI that tests something else."""
    documents = [path for path in tree.files if path.endswith(".md") and (path.startswith("docs/") or "/" not in path)]
    scripts = [path for path in tree.files if path == ".ci/run" or path.startswith(".github/workflows/")]
    known = {target.label for target in targets_of(tree)}
    # The suites that a macro makes beside its tests.
    known |= {f"{label.partition(':')[0]}:full" for label in known if label.endswith(":smoke")}
    packages = {package_of(path) for path in tree.build_files()}
    for path in [*documents, *scripts]:
        for command in commands_in(tree.text(path), path):
            for label in command.labels:
                if problem := _problem(label, known, packages):
                    yield Finding(path, command.line, f"`{command.verb} {label}`: {problem}", "correct one of the two")
    for path in documents:
        for match in PROOF.finditer(tree.text(path)):
            if problem := _problem(match[1], known, packages):
                line = tree.text(path).count("\n", 0, match.start()) + 1
                yield Finding(path, line, f"`{match[1]}`: {problem}", "name the test that proves it")
    yield from _configs(tree, documents, scripts)
    for path in ("README.md", ".ci/run"):
        if path in tree.files and TEST_EVERYTHING not in tree.text(path):
            yield Finding(path, 1, f"lacks `{TEST_EVERYTHING}`", "README.md and .ci/run state the same test command")


def commands_in(text: str, path: str) -> list[Command]:
    """The Bazel commands of a text, in order."""
    found = []
    for match in COMMAND.finditer(text):
        words = f"{match['rest']} ".split(" -- ")[0].split()
        labels = tuple(word.strip("\"'.,)") if word.endswith((",", ")")) else word for word in words if _is_label(word))
        found.append(Command(path, text.count("\n", 0, match.start()) + 1, match["verb"], labels))
    return found


def _is_label(word: str) -> bool:
    """True for labels of this repository; words with a placeholder in them are the reader's to fill."""
    return word.startswith("//") and not set(word) & set("<>{}$*…")


def _problem(label: str, known: set[str], packages: set[str]) -> str | None:
    package, colon, name = label.removeprefix("//").partition(":")
    if package == "..." or package.endswith("/..."):
        below = package.removesuffix("...").removesuffix("/")
        found = any(each == below or each.startswith(f"{below}/") or not below for each in packages)
        return None if found else f"no BUILD file at or below {below}"
    if package not in packages:
        return f"there is no package {package}"
    if name in ("all", "all-targets"):
        return None
    target = f"//{package}:{name if colon else package.rpartition('/')[2]}"
    # A macro that makes several targets names them after itself, with a dot: smoke.sft_lora comes from smoke.
    return None if target in known or target.split(".")[0] in known else f"there is no target {target}"


def _configs(tree: Tree, documents: list[str], scripts: list[str]) -> Iterator[Finding]:
    defined: dict[str, tuple[str, int]] = {}
    for path in [name for name in tree.files if name.rpartition("/")[2].endswith("bazelrc")]:
        text = tree.text(path)
        for match in RC_CONFIG.finditer(text):
            defined.setdefault(match[1], (path, text.count("\n", 0, match.start()) + 1))
    documented = set()
    for path in [*documents, *scripts]:
        text = tree.text(path)
        for match in CONFIG.finditer(text):
            if path in documents:
                documented.add(match[1])
            if match[1] not in defined:
                line = text.count("\n", 0, match.start()) + 1
                yield Finding(
                    path, line, f"--config={match[1]} is in no .bazelrc", "correct the name, or add the config"
                )
    for name, (path, line) in defined.items():
        if name not in documented:
            yield Finding(
                path, line, f"--config={name} is documented nowhere", "add a line on it to README.md or docs/"
            )
