"""The harness believes a red guard only for the right reason, and a green one never."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.negative import planting
from tests.negative.planting import Bug, Guard, Run, Warm, WrongError, caught, green

NEEDED = ("tests/negative/imported.py", "tools/bazel/hermetic.py")
"""Of this repository, what a guard's process needs beside the guard."""

TOY = {
    "training/sums.py": "def add(one, other):\n    return one + other\n",
    "training/unused.py": "NUMBER = 1\n",
    "tests/unit/sums_test.py": """\
import subprocess
import time
from pathlib import Path

import pytest

from training.sums import add


@pytest.fixture
def made():
    return add(1, 1)


def test_adds():
    assert add(2, 3) == 5


def test_refuses_nothing():
    with pytest.raises(TypeError):
        add(1, None)


def test_with_a_fixture(made):
    assert made == 2


@pytest.mark.parametrize("one", [0, 1])
def test_zero_changes_nothing(one):
    assert add(one, 0) == one


def test_skips():
    pytest.skip("on this machine")


def test_leaves_a_process_behind():
    process = subprocess.Popen(["sleep", "1000"])
    Path("pid").write_text(str(process.pid))
    assert add(2, 3) == 5


def test_waits():
    if add(2, 3) != 5:
        time.sleep(1000)
""",
}
GUARD = Guard("//tests/unit:sums_test", ("test_adds",))
BUG = Bug("subtracts", "Adding subtracts.", "training/sums.py", GUARD, "one + other", "one - other")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Runs all guards of this file, whose sources import the same libraries."""
    sources = tmp_path_factory.mktemp("sources")
    (sources / "sums_test.py").write_text(TOY["tests/unit/sums_test.py"])
    with Warm(sources) as process:
        yield process


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository with a module, its test, and what every guard needs."""
    root = tmp_path / "root"
    for name, text in TOY.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in NEEDED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, root / name)
    return root


def at(*tests: str, label: str = GUARD.label) -> Guard:
    return Guard(label, tests)


def refused(bug: Bug, root: Path, warm: Warm, scratch: Path) -> str:
    with pytest.raises(WrongError) as wrong:
        caught(bug, scratch, warm, root=root)
    return str(wrong.value)


def test_a_bug_that_its_guard_sees_is_caught_and_the_sources_stay_as_they_are(
    root: Path, warm: Warm, tmp_path: Path
) -> None:
    run = caught(BUG, tmp_path / "scratch", warm, root=root)
    (case,) = run.cases
    assert (case.name, case.outcome) == ("test_adds", "failure")
    assert case.message.startswith("assert -1 == 5")
    assert {Path(each).name for each in run.imported} == {"imported.py", "hermetic.py", "sums.py", "sums_test.py"}
    assert (root / BUG.file).read_text() == TOY[BUG.file]


def test_one_red_set_of_parameters_is_enough(root: Path, warm: Warm, tmp_path: Path) -> None:
    one = replace(BUG, guard=at("test_zero_changes_nothing"), planted="one + other if one else 5")
    assert [case.outcome for case in caught(one, tmp_path / "one", warm, root=root).cases] == ["failure", "passed"]
    named = replace(one, guard=at("test_zero_changes_nothing[0]"))
    assert [case.outcome for case in caught(named, tmp_path / "named", warm, root=root).cases] == ["failure"]


def test_a_bug_that_survives_is_named_with_its_guard(root: Path, warm: Warm, tmp_path: Path) -> None:
    assert refused(replace(BUG, planted="other + one"), root, warm, tmp_path / "scratch") == (
        "bug subtracts (Adding subtracts.): it SURVIVES: //tests/unit:sums_test (test_adds) is green; expected a guard "
        "that turns red. hint: the bug is real, so the guard is too weak: strengthen it, or write one and name it here"
    )


def test_a_guard_that_cannot_see_the_file_is_told_apart(root: Path, warm: Warm, tmp_path: Path) -> None:
    elsewhere = replace(BUG, file="training/unused.py", original="1", planted="2")
    assert "is green, and has not imported training/unused.py; " in refused(elsewhere, root, warm, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("original", "planted", "count"),
    [("one * other", "one - other", 0), ("one", "two", 2), ("one + other", "one + other", 1)],
    ids=["gone", "twice", "the same"],
)
def test_a_stale_row_is_reported_as_such(
    root: Path, warm: Warm, tmp_path: Path, original: str, planted: str, count: int
) -> None:
    said = refused(replace(BUG, original=original, planted=planted), root, warm, tmp_path / "scratch")
    assert said == (
        f"bug subtracts: the original text stands {count} times in training/sums.py; expected once, and another text "
        "to plant. hint: the row is stale: take the text from the file as it is now, and check that the bug still is "
        "one"
    )


def test_a_file_that_is_gone_makes_a_row_stale(root: Path, warm: Warm, tmp_path: Path) -> None:
    said = refused(replace(BUG, file="training/gone.py"), root, warm, tmp_path / "scratch")
    assert said.startswith(
        "bug subtracts: training/gone.py is not among the files of //tests/unit:sums_test; expected "
    )


@pytest.mark.parametrize(
    ("planted", "guard", "reason"),
    [
        ("one +", at("test_adds"), "error: collection failure"),
        ("one + other\n\nimport gone", at("test_adds"), "error: collection failure"),
        ("one + others", at("test_adds"), "failure: NameError: name 'others' is not defined"),
        ("one + others", at("test_with_a_fixture"), "error: failed on setup with "),
        ("one - other", at("test_divides"), "no test ran"),
        ("one - other", at("test_adds", label="//tests/unit:gone_test"), "no test ran"),
        ("one - other", at("test_skips"), "no test ran"),
    ],
    ids=["syntax", "import", "name", "fixture", "no such test", "no such file", "skipped"],
)
def test_red_for_another_reason_is_refused(
    root: Path, warm: Warm, tmp_path: Path, planted: str, guard: Guard, reason: str
) -> None:
    said = refused(replace(BUG, planted=planted, guard=guard), root, warm, tmp_path / "scratch")
    assert f"is red for the wrong reason ({'' if reason == 'no test ran' else guard.tests[0]}" in said.replace(
        "tests.unit.sums_test", guard.tests[0]
    )
    assert reason in said
    assert "; expected a failed assertion. hint: plant code that runs, and name tests that exist; its output:" in said


def test_an_error_counts_if_the_row_lists_it(root: Path, warm: Warm, tmp_path: Path) -> None:
    fails = replace(BUG, planted="one // 0")
    assert "failure: ZeroDivisionError: " in refused(fails, root, warm, tmp_path / "unlisted")
    (case,) = caught(replace(fails, raises=("ZeroDivisionError",)), tmp_path / "listed", warm, root=root).cases
    assert case.message.startswith("ZeroDivisionError: ")


def test_an_error_that_does_not_come_is_an_assertion(root: Path, warm: Warm, tmp_path: Path) -> None:
    lenient = replace(BUG, guard=at("test_refuses_nothing"), planted="one + (other or 0)")
    (case,) = caught(lenient, tmp_path / "scratch", warm, root=root).cases
    assert case.message.startswith("Failed: DID NOT RAISE")


def test_without_a_bug_each_named_guard_is_green(root: Path, warm: Warm, tmp_path: Path) -> None:
    run = green(at("test_adds", "test_zero_changes_nothing"), tmp_path / "scratch", warm, root=root)
    assert [case.outcome for case in run.cases] == ["passed"] * 3


@pytest.mark.parametrize(
    ("test", "got"),
    [
        ("test_divides", "it is not there"),
        ("test_skips", "skipped: on this machine"),
        ("test_adds", "failure: assert "),
    ],
)
def test_a_guard_that_is_not_green_without_a_bug_is_refused(
    root: Path, warm: Warm, tmp_path: Path, test: str, got: str
) -> None:
    if test == "test_adds":
        (root / "training/sums.py").write_text(TOY["training/sums.py"].replace("+", "-"))
    with pytest.raises(WrongError) as wrong:
        green(at(test), tmp_path / "scratch", warm, root=root)
    assert str(wrong.value).startswith(f"//tests/unit:sums_test {test}: without a bug, {got}")


@pytest.mark.parametrize("run", [caught, green])
def test_a_module_from_elsewhere_is_noticed(root: Path, warm: Warm, tmp_path: Path, run: Callable[..., Run]) -> None:
    (tmp_path / "elsewhere/training").mkdir(parents=True)
    (tmp_path / "elsewhere/training/other.py").write_text("")
    test = root / "tests/unit/sums_test.py"
    path = f"import sys\n\nsys.path.append({str(tmp_path / 'elsewhere')!r})\nimport training.other\n"
    test.write_text(path + test.read_text())
    with pytest.raises(WrongError, match=r"the guard imported .*elsewhere/training/other.py; expected first-party"):
        caught(BUG, tmp_path / "scratch", warm, root=root) if run is caught else green(
            GUARD, tmp_path / "scratch", warm, root=root
        )


def test_what_a_guard_leaves_running_is_ended_with_it(root: Path, warm: Warm, tmp_path: Path) -> None:
    caught(replace(BUG, guard=at("test_leaves_a_process_behind")), tmp_path / "scratch", warm, root=root)
    (pid,) = tmp_path.rglob("pid")
    assert not is_running(int(pid.read_text()))


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that was killed may take a moment, or wait for init to ask about it."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def test_a_guard_that_waits_for_ever_is_ended_and_says_so(
    root: Path, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planting, "SECONDS_MAX", 5)
    said = refused(replace(BUG, guard=at("test_waits")), root, warm, tmp_path / "scratch")
    assert said.endswith("it did not end within 5 s")


def test_the_copy_holds_what_is_beside_the_sources_and_no_bytecode(tmp_path: Path) -> None:
    files: Sequence[str] = (".ci/run", "training/a.py", "training/__pycache__/a.pyc", "bazelw", "secret/b.py")
    for name in files:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text("")
    copy = planting.copied(tmp_path / "root", tmp_path / "scratch")
    found = [os.path.relpath(path, copy) for path in copy.rglob("*") if path.is_file()]
    assert sorted(found) == [".ci/run", "bazelw", "training/a.py"]
