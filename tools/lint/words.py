"""Words that no file may hold: one machine's paths, one network's package hosts, and silenced checks without a reason.

Nor may what is below every way to learn name one of them: a step, the loop, a backend or a checkpoint that knows which
loss it serves has to be changed for the next one.

A checkout works wherever it lies and with whatever index a machine is configured for, so a path or a host in it is a
mistake waiting for the next machine. A silenced check without a reason is a finding that nobody has answered.
"""

import re
from collections.abc import Iterator

from tools.lint.tree import Finding, Tree

MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:home|root|Users|work|tmp|mnt|var/tmp)/[\w.][\w./-]*")
HOST = re.compile(r"\b(?:[\w-]+\.)*(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|debian\.org)\b")
SUPPRESSION = re.compile(
    r"# ?(?:noqa|type: ?ignore|fmt: ?(?:off|skip)|mypy:|ruff:)(?::? ?[\w\[\], -]*?)(?P<why>(?: -|#).*)?$"
)

WAY_TO_LEARN = re.compile(r"\b(?:sft|dpo|kto|grpo|ppo|rloo|rewards?|preferences?)\b", re.IGNORECASE)
BELOW_ALL = ("training/step.py", "training/loop.py", "training/parallel/", "training/checkpoint/")

#: Files that tools write and nobody reads for words.
GENERATED = ("MODULE.bazel.lock",)
ENDINGS = (".bazel", ".bazelrc", ".bzl", ".in", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml")
NAMES = (".ci/run", ".gitignore", "WORKSPACE", "bazelw")


def findings(tree: Tree) -> Iterator[Finding]:
    """Machine paths and registry hosts in any text file, ways to learn below them all, silenced checks without why."""
    for path in tree.files:
        if path in GENERATED or not (path.endswith(ENDINGS) or path in NAMES):
            continue
        for number, line in enumerate(tree.text(path).splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                yield Finding(path, number, f"names {match[0]}, a path of one machine", "derive it when it is needed")
            if match := HOST.search(line):
                yield Finding(
                    path, number, f"names the host {match[0]}", "leave the index to the machine's configuration"
                )
            if path.startswith(BELOW_ALL) and (match := WAY_TO_LEARN.search(line)):
                yield Finding(
                    path, number, f"names {match[0]}, one way to learn of several", "have the recipe decide it"
                )
            if path.endswith(".py") and (match := SUPPRESSION.search(line)) and not match["why"]:
                yield Finding(path, number, f"silences a check: {match[0]}", "say why beside it: # … - because")
