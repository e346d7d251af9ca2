"""What is checked in is what the table of accelerators says, and words that combine do not collide."""

import itertools
import os
import re
import subprocess
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.devices.detect import Device
from tools.pools import manifests
from tools.pools.services import workers
from tools.pools.table import (
    BAZELRC,
    DOCUMENT,
    MARKS,
    REFRESH,
    TABLE,
    WORKFLOW,
    WRITERS,
    document,
    lanes,
    nights,
    stanzas,
    starlark,
    written,
)

TEXT = Path(TABLE).read_text()
NAMES = starlark(TEXT)
CONFIG = re.compile(r"^\w+:(\w+) (--\S+?)(?:=(\S+))?$", re.MULTILINE)


@pytest.mark.parametrize("path", WRITERS)
def test_what_is_checked_in_is_what_the_table_says(path: str) -> None:
    text = Path(path).read_text()
    assert written(path, text, NAMES) == text, f"{path} is stale. hint: {REFRESH}"


ROW = """
    "gpu-apple": struct(
        cards = [1, 2, 8],
        config = "metal",
        device = "mps",
        device_files = ["/dev/agx"],
        driver = "14.5",
        hidden = {"METAL_DEVICES": "-1"},
        lock = "requirements_lock_metal.txt",
        meaning = "an Apple GPU",
        memory_gib = 3,
        resource = "apple.com/gpu",
        runtime = "",
        torch = "mps",
        visible = "METAL_DEVICES",
    ),
"""
APPLE = ["gpu-apple", "gpu-apple-x2", "gpu-apple-x8"]


@pytest.fixture(scope="module")
def grown() -> dict[str, Any]:
    """The names of a table with one row more."""
    names = starlark(TEXT.replace("ACCELERATORS = {\n", f"ACCELERATORS = {{{ROW}"))
    fields = {accelerator: vars(row).keys() for accelerator, row in names["ACCELERATORS"].items()}
    assert fields["gpu-apple"] == fields["gpu-intel"], "the row of this test has what every row has"
    return names


def loaded(file: str, names: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The macros of a .bzl file, for which this is the table."""
    brought = {**names, "load": lambda *_, **__: None, "select": lambda choices: {"select": choices}, **more}
    return starlark(Path("tools/bazel", file).read_text(), **brought)


def test_a_new_accelerator_is_one_row_for_what_is_checked_in(grown) -> None:
    assert "# An Apple GPU.\nbuild:metal --platforms=//tools/pools:metal\n" in stanzas(grown) + "\n"
    assert "accelerator: gpu-apple\n      config: metal\n" in lanes(grown)
    assert "targets: //tests/smoke:full.gpu-apple\n" in nights(grown)
    (line,) = [line for line in document(grown).splitlines() if line.startswith("| `gpu-apple`")]
    places = "`mps` | `requirements_lock_metal.txt` | `METAL_DEVICES` | 3 GiB or more"
    assert f"`gpu-apple`, `gpu-apple-x2`, `gpu-apple-x8` | {places}" in line


def test_a_new_accelerator_is_one_row_for_targets_and_platforms(grown) -> None:
    made: list[dict[str, Any]] = []
    native = types.SimpleNamespace(
        package_name=lambda: "tests/unit", filegroup=lambda **_: None, constraint_setting=lambda **_: None
    )
    native.constraint_value = native.platform = lambda **given: made.append(given)
    names = {"native": native, "FINGERPRINTS": {"gpu-apple": "M9"}, "_closure": None, "_py_test": native.platform}
    macros = loaded("defs.bzl", grown, **names)
    macros["py_test"](name="x_test", srcs=["x_test.py"], accelerators=["gpu-apple"], cards=8)
    (test,) = made
    assert (test["name"], test["exec_properties"]) == ("x_test.gpu-apple", {"test.Pool": "gpu-apple-x8"})
    assert test["target_compatible_with"] == ["//tools/bazel:gpu-apple-x8"]
    said = {"PLUMBLINE_TORCH": "mps", "PLUMBLINE_VISIBLE": "METAL_DEVICES", "PLUMBLINE_HARDWARE": "M9"}
    assert test["env"].items() >= said.items()
    hidden = macros["_hidden"]()["select"]
    assert hidden["//tools/bazel:gpu-apple"] == {"METAL_DEVICES": "-1"}
    made.clear()
    platforms = loaded("platforms.bzl", grown, native=native)
    platforms["accelerator_constraints"](name="constraints")
    assert set(APPLE) <= {each["name"] for each in made}
    made.clear()
    platforms["accelerator_platforms"](name="platforms", here={"gpu-apple": 2}, default="gpu-apple")
    offers = {each["name"]: each["constraint_values"] for each in made}
    assert offers["metal"] == offers["host"] == ["//tools/bazel:gpu-apple", "//tools/bazel:gpu-apple-x2"]


def test_a_new_accelerator_is_one_row_for_the_cluster_and_for_farms(grown, tmp_path) -> None:
    cards = {"gpu-apple": [Device("gpu-apple", f"{each}", "M9", 2**34, "1") for each in range(2)]}
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/agx").touch()
    found = {row.pool: row for row in workers(grown, APPLE, cpus=1, cards=cards, root=tmp_path)}
    assert [found[pool].simulated for pool in APPLE] == [False, False, True]
    assert found["gpu-apple"].device_files == ("/dev/agx",)
    texts = {row.lock: "" for row in grown["ACCELERATORS"].values()}
    written = manifests.files(grown, texts)
    for path in (path for path in written if not path.endswith(("training.yaml", "jobset.yaml"))):
        assert all(f"{pool}" in written[path] for pool in APPLE), path
    compose = yaml.safe_load(written["tools/pools/farm/compose.yaml"])["services"]["runner-gpu-apple-x2"]
    assert compose["devices"] == ["/dev/agx:/dev/agx"]
    assert "apple.com/gpu: 8" in written["tools/pools/farm/workers.yaml"]


def test_lanes_with_cards_wait_for_the_one_without_and_never_run_code_of_a_fork() -> None:
    jobs = yaml.safe_load(Path(WORKFLOW).read_text())["jobs"]
    assert [jobs["quick"].get("needs"), jobs["test"]["needs"]] == [None, "quick"]
    called = {name: job for name, job in jobs.items() if job.get("uses", "").endswith("/cards.yml")}
    assert called.keys() == {accelerator for accelerator, row in NAMES["ACCELERATORS"].items() if row.cards}
    for name, job in called.items():
        assert job["needs"] == "test"
        assert job["with"] == {"accelerator": name, "config": NAMES["ACCELERATORS"][name].config}
        assert "secrets" not in job
        has_cards, _, is_ours = job["if"].partition(" && ")
        assert has_cards == f"contains(vars.PLUMBLINE_POOLS, '{name}')"
        assert is_ours.startswith("(github.event_name == 'push' || github.event.pull_request.head.repo.full_name == ")


@pytest.mark.parametrize(
    ("results", "unproven"),
    [
        ({"gpu-amd": "skipped", "gpu-nvidia": "success"}, ["gpu-amd"]),
        (
            {"gpu-amd": "skipped", "gpu-intel": "skipped", "gpu-nvidia": "skipped"},
            ["gpu-amd", "gpu-intel", "gpu-nvidia"],
        ),
        ({"gpu-amd": "failure", "gpu-nvidia": "success"}, []),
    ],
)
def test_a_lane_that_was_skipped_is_said_to_be_unproven(
    tmp_path: Path, results: dict[str, str], unproven: list[str]
) -> None:
    job = yaml.safe_load(Path(WORKFLOW).read_text())["jobs"]["unproven"]
    cards = [accelerator for accelerator, row in NAMES["ACCELERATORS"].items() if row.cards]
    assert (job["needs"], job["if"]) == (cards, "always()")
    assert job["env"]["RESULTS"].split() == " ".join(f"{each}=${{{{ needs.{each}.result }}}}" for each in cards).split()
    (step,) = job["steps"]
    summary = tmp_path / "summary.md"
    summary.touch()
    said = " ".join(f"{name}={result}" for name, result in results.items())
    environment = {"PATH": os.environ["PATH"], "RESULTS": said, "GITHUB_STEP_SUMMARY": str(summary)}
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]], env=environment, capture_output=True, text=True, check=True
    )
    assert re.findall(r"^- \*\*(\S+) is unproven\.\*\*", summary.read_text(), re.MULTILINE) == unproven
    assert re.findall(r"^::warning title=(\S+) is unproven::", done.stdout, re.MULTILINE) == unproven


@pytest.mark.parametrize("path", sorted(Path(WORKFLOW).parent.iterdir()), ids=lambda path: path.stem)
def test_no_workflow_may_write_or_is_told_a_secret(path: Path) -> None:
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    assert "pull_request_target" not in text, "it would run code of strangers with the rights of the repository"
    jobs = [job for job in workflow["jobs"].values() if "steps" in job]
    assert jobs
    assert all(job["timeout-minutes"] for job in jobs)
    uses = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", each) for each in uses), "a tag can be moved to other code"


def test_every_number_of_cards_has_a_pool_and_the_first_is_the_cpus() -> None:
    pools = NAMES["pools"]()
    assert next(iter(pools)) == "cpu"
    assert {(each.accelerator, each.cards) for each in pools.values() if each.cards} == {
        (accelerator, cards) for accelerator, row in NAMES["ACCELERATORS"].items() for cards in row.cards
    }
    # One card is the least that an accelerator's tests ask for, and a platform that names it has.
    assert all(min(row.cards) == 1 for row in NAMES["ACCELERATORS"].values() if row.cards)


def test_a_file_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        written(DOCUMENT, MARKS[DOCUMENT][0], NAMES)


def options(text: str) -> dict[str, set[str]]:
    """The options that each config sets."""
    found = defaultdict(set)
    for config, option, _ in CONFIG.findall(text):
        found[config].add(option.removeprefix("--no").lstrip("-"))
    return found


def test_hardware_place_and_report_combine_since_none_sets_an_option_of_another() -> None:
    found = options(Path(BAZELRC).read_text())
    hardware = [row.config for row in NAMES["ACCELERATORS"].values() if row.cards]
    lines = [hardware, ["disk", "cache", "remote"], ["ci"]]
    assert set(found) == {config for line in lines for config in line}, "a config of no line, or none of a line"
    for one, other in itertools.combinations(lines, 2):
        for left, right in itertools.product(one, other):
            assert not found[left] & found[right], f"--config={left} and --config={right}"
    assert not found["disk"] & (found["cache"] | found["remote"])


def test_what_is_for_farms_alone_stays_off_this_machine() -> None:
    rc = Path(BAZELRC).read_text()
    assert "build:remote --noremote_local_fallback\n" in rc, "a test for a pool that is not there would pass here"
    assert "build:remote --spawn_strategy=remote\n" in rc
    assert "build:remote --remote_default_exec_properties=Pool=cpu\n" in rc
    assert "build:remote --//tools/pypi:form=tree\n" in rc
    assert not [line for line in rc.splitlines() if "remote_local_fallback" in line and "noremote" not in line]
