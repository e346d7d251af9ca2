import os
import subprocess
from pathlib import Path

from tools.lint.tree import open_tree

PROGRAM = str(Path(os.environ.get("PLUMBLINE_BUILDIFIER", "buildifier")).absolute())


def test_buildifier_has_nothing_to_say() -> None:
    tree = open_tree()
    starlark = [path for path in tree.files if path.endswith((".bazel", ".bzl"))]
    command = [PROGRAM, "-mode=check", "-lint=warn", *starlark]
    done = subprocess.run(command, cwd=tree.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}hint: ./bazelw run //tools/lint:fix"


def test_buildifier_would_have_something_to_say(tmp_path: Path) -> None:
    (tmp_path / "BUILD.bazel").write_text('filegroup(srcs=["b","a"], name="x")\n')
    done = subprocess.run([PROGRAM, "-mode=check", "BUILD.bazel"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 0
