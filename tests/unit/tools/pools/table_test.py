"""What is checked in is what the table of accelerators says, and words that combine do not collide."""

import itertools
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

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


def test_a_new_accelerator_is_one_row() -> None:
    row = 'cards = [1, 2, 8],\n        config = "metal",\n        device = "mps",\n        device_files = [],\n'
    row += '        lock = "l.txt",\n        meaning = "an Apple GPU",\n        memory_gib = 3,\n'
    row += '        resource = "",\n        torch = "mps",\n        visible = "V",\n'
    names = starlark(
        TEXT.replace("ACCELERATORS = {\n", f'ACCELERATORS = {{\n    "gpu-apple": struct(\n        {row}    ),\n')
    )
    assert "# An Apple GPU.\nbuild:metal --platforms=//tools/pools:metal\n" in stanzas(names) + "\n"
    assert "accelerator: gpu-apple\n      config: metal\n" in lanes(names)
    assert "targets: //tests/smoke:full.gpu-apple\n" in nights(names)
    (line,) = [line for line in document(names).splitlines() if line.startswith("| `gpu-apple`")]
    assert "`gpu-apple`, `gpu-apple-x2`, `gpu-apple-x8` | `mps` | `l.txt` | `V` | 3 GiB or more" in line


def test_lanes_with_cards_wait_for_the_one_without_and_never_run_code_of_a_fork() -> None:
    jobs = yaml.safe_load(Path(WORKFLOW).read_text())["jobs"]
    called = {name: job for name, job in jobs.items() if "uses" in job}
    assert called.keys() == {accelerator for accelerator, row in NAMES["ACCELERATORS"].items() if row.cards}
    for name, job in called.items():
        assert job["needs"] == "test"
        assert job["with"] == {"accelerator": name, "config": NAMES["ACCELERATORS"][name].config}
        assert "secrets" not in job
        has_cards, _, is_ours = job["if"].partition(" && ")
        assert has_cards == f"contains(vars.PLUMBLINE_POOLS, '{name}')"
        assert is_ours.startswith("(github.event_name == 'push' || github.event.pull_request.head.repo.full_name == ")


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
