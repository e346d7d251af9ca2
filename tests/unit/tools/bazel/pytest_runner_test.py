"""Runs planted targets, built by the real macro, as Bazel would, and reads what they report."""

import gc
import os
import pathlib
import subprocess
import xml.etree.ElementTree
from dataclasses import dataclass

import pytest

from tests.unit.tools.devices.machines import nvidia_smi
from tools.bazel import pytest_runner
from tools.devices import check
from tools.devices.check import EXIT_CODE
from tools.devices.detect import devices
from tools.devices.lease import Wish, take

PLANTED = pathlib.Path("tests/unit/tools/bazel/planted").absolute()


@dataclass(frozen=True)
class Run:
    """What one run of a planted target left behind."""

    code: int
    output: str
    cases: dict[str, str]
    touched_shard_file: bool


@pytest.fixture
def run(tmp_path: pathlib.Path):
    """A function that runs a planted target with more of Bazel's variables and returns a `Run`."""

    def run(name: str, **variables: str) -> Run:
        report, shard_file, scratch = tmp_path / f"{name}.xml", tmp_path / f"{name}.shard", tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("TEST_", "TESTBRIDGE_", "PYTEST_"))
        }
        environment |= {"XML_OUTPUT_FILE": str(report), "TEST_TMPDIR": str(scratch), "TEST_TARGET": f"//planted:{name}"}
        environment |= {
            "TEST_SRCDIR": os.environ["TEST_SRCDIR"],
            "TEST_SHARD_STATUS_FILE": str(shard_file),
            **variables,
        }
        command = [str(PLANTED / name), f"tests/unit/tools/bazel/planted/{name}.py"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        cases = {}
        if report.exists():
            for case in xml.etree.ElementTree.parse(report).iter("testcase"):
                cases[case.attrib["name"]] = next((child.tag for child in case), "passed")
        return Run(done.returncode, done.stdout + done.stderr, cases, shard_file.exists())

    return run


ASKS = {
    "PLUMBLINE_ACCELERATOR": "gpu-nvidia",
    "PLUMBLINE_CARDS": "2",
    "PLUMBLINE_CARD_GIB": "15",
    "PLUMBLINE_DRIVER": "",
    "PLUMBLINE_TORCH": "cuda",
    "PLUMBLINE_VISIBLE": "CUDA_VISIBLE_DEVICES",
    "PLUMBLINE_HARDWARE": "NVIDIA L4, 22 GiB, driver 570.86",
}


def test_a_test_on_a_machine_without_its_cards_is_a_failure_of_the_infrastructure(run, tmp_path) -> None:
    said = tmp_path / "infrastructure"
    search = nvidia_smi(tmp_path / "bin", "GPU-1, NVIDIA L4, 23034, 570.86")
    path = f"{search}:{os.environ['PATH']}"
    result = run(
        "passes", **ASKS, PATH=path, PLUMBLINE_LEASES=str(tmp_path), TEST_INFRASTRUCTURE_FAILURE_FILE=str(said)
    )
    reason = "cards: 1 of gpu-nvidia; expected 2 or more"
    assert result.code == EXIT_CODE, result.output
    assert f"infrastructure, not the code: {reason}" in result.output
    assert said.read_text().startswith(reason)
    assert result.cases == {"hardware": "error"}, "and no test was collected"


def test_a_test_that_is_to_show_the_way_to_a_pool_fails_where_no_worker_is(run) -> None:
    result = run("passes", PLUMBLINE_ROUTE="gpu-of-no-worker")
    assert result.code == EXIT_CODE, result.output
    assert "infrastructure, not the code: route: came to " in result.output
    assert "expected a worker of pool gpu-of-no-worker" in result.output
    assert result.cases == {"hardware": "error"}, "and no test was collected"


def test_what_a_simulated_worker_lets_run_is_said_to_be_no_proof_of_a_card(monkeypatch, capsys) -> None:
    here = {"now": check.Place("gpu-amd", simulated=True, hardware="")}
    monkeypatch.setattr(check, "place", lambda: here["now"])
    monkeypatch.setenv("PLUMBLINE_ACCELERATOR", "cpu")
    monkeypatch.setenv("PLUMBLINE_ROUTED", "")
    assert pytest_runner.wrong_machine() is None, "a test of the cpu asks for no place"
    monkeypatch.setenv("PLUMBLINE_ROUTE", "gpu-amd")
    assert pytest_runner.wrong_machine() is None
    said = "routing only, no card: a test of the cpu, on a worker of pool gpu-amd, which is simulated"
    assert os.environ["PLUMBLINE_ROUTED"] == said
    assert capsys.readouterr().out == f"{said}\n"
    here["now"] = check.Place("gpu-intel", simulated=True, hardware="")
    assert str(pytest_runner.wrong_machine()).startswith(
        "route: came to a worker of pool gpu-intel, which is simulated"
    )


def test_a_test_for_cards_is_red_on_a_simulated_worker_though_one_of_the_cpu_shows_the_way(monkeypatch) -> None:
    monkeypatch.setattr(check, "place", lambda: check.Place("gpu-nvidia-x2", simulated=True, hardware=""))
    for name, value in {**ASKS, "PLUMBLINE_ACCELERATOR": "gpu-of-nobody", "PLUMBLINE_POOL": "gpu-nvidia-x2"}.items():
        monkeypatch.setenv(name, value)
    told = str(pytest_runner.wrong_machine())
    assert told.startswith("cards: 0 of gpu-of-nobody")
    assert "; on a worker of pool gpu-nvidia-x2, which is simulated: it proves the route and no hardware. hint" in told
    monkeypatch.setenv("PLUMBLINE_POOL", "gpu-nvidia")
    assert str(pytest_runner.wrong_machine()).startswith("pool: gpu-nvidia-x2; expected gpu-nvidia")


def test_cards_that_others_hold_are_given_up_before_bazel_ends_the_test(run, tmp_path) -> None:
    search = nvidia_smi(tmp_path / "bin", *(f"GPU-{each}, NVIDIA L4, 23034, 570.86" for each in range(2)))
    held = take(Wish("gpu-nvidia", 1, "V"), devices(tmp_path, str(search)), tmp_path / "leases")
    path, leases = f"{search}:{os.environ['PATH']}", str(tmp_path / "leases")
    result = run("passes", **ASKS, PATH=path, PLUMBLINE_LEASES=leases, TEST_TIMEOUT="1")
    held.give_back()
    assert result.code == EXIT_CODE, result.output
    assert (
        "infrastructure, not the code: cards: 2 of gpu-nvidia were not free within 0.5 s, 1 came free" in result.output
    )
    assert result.cases == {"hardware": "error"}


def test_a_test_on_a_machine_with_its_cards_runs(run, tmp_path) -> None:
    search = nvidia_smi(tmp_path / "bin", *(f"GPU-{each}, NVIDIA L4, 23034, 570.86" for each in range(2)))
    path = f"{search}:{os.environ['PATH']}"
    assert run("passes", **ASKS, PATH=path, PLUMBLINE_LEASES=str(tmp_path)).cases["test_adds"] == "passed"
    leased = run("passes", **ASKS, PATH=path, PLUMBLINE_LEASED="GPU-0")
    assert leased.code == EXIT_CODE, "one that was leased less than it asked for"


def test_a_passing_file_is_green_and_reports_each_case(run) -> None:
    result = run("passes")
    assert result.code == 0, result.output
    assert result.cases == {
        "test_adds": "passed",
        "test_subtracts": "passed",
        "test_draws_the_same_number_each_time": "passed",
    }


def test_a_failing_test_is_red_and_the_others_still_run(run) -> None:
    result = run("fails")
    assert result.code != 0
    assert result.cases == {"test_fails": "failure", "test_passes_after_it": "passed"}


def test_fail_fast_stops_at_the_first_failure(run) -> None:
    result = run("fails", TESTBRIDGE_TEST_RUNNER_FAIL_FAST="1")
    assert result.code != 0
    assert result.cases == {"test_fails": "failure"}


def test_a_file_without_tests_is_red(run) -> None:
    result = run("holds_no_test")
    assert result.code != 0
    assert "no test was collected; hint: functions are named test_..." in result.output


def test_a_run_in_which_every_test_is_skipped_is_red(run) -> None:
    result = run("skips_all")
    assert result.code != 0
    assert "every test was skipped, which proves nothing" in result.output


def test_a_file_that_cannot_be_imported_is_red(run) -> None:
    assert run("errors_at_import").code != 0


def test_an_unexpected_pass_is_red(run) -> None:
    assert run("expects_to_fail").code != 0


def test_a_warning_of_our_own_modules_is_an_error(run) -> None:
    result = run("warns")
    assert result.code != 0
    assert result.cases == {"test_our_own_warning_is_an_error": "failure"}


def test_a_filter_runs_what_it_names(run) -> None:
    assert set(run("passes", TESTBRIDGE_TEST_ONLY="test_adds").cases) == {"test_adds"}


def test_a_filter_may_be_the_end_of_a_node_id(run) -> None:
    result = run("passes", TESTBRIDGE_TEST_ONLY="passes.py::TestSeed::test_draws_the_same_number_each_time")
    assert result.cases == {"test_draws_the_same_number_each_time": "passed"}


def test_a_filter_that_matches_nothing_is_red(run) -> None:
    result = run("passes", TESTBRIDGE_TEST_ONLY="test_divides")
    assert result.code != 0
    assert "--test_filter=test_divides matches no test of this target" in result.output


def test_shards_share_the_tests_among_them(run) -> None:
    shards = [run("passes", TEST_TOTAL_SHARDS="2", TEST_SHARD_INDEX=str(index)) for index in range(2)]
    assert [shard.code for shard in shards] == [0, 0]
    assert all(shard.touched_shard_file for shard in shards)
    assert sorted([*shards[0].cases, *shards[1].cases]) == [
        "test_adds",
        "test_draws_the_same_number_each_time",
        "test_subtracts",
    ]


def test_more_shards_than_tests_is_red(run) -> None:
    result = run("passes", TEST_TOTAL_SHARDS="4", TEST_SHARD_INDEX="0")
    assert result.code != 0
    assert "3 tests cannot fill 4 shards; hint: lower shard_count" in result.output


def test_the_seed_is_printed_with_the_command_that_replays_it(run) -> None:
    result = run("passes", PLUMBLINE_SEED="7")
    assert result.code == 0
    assert "seed 7; replay: ./bazelw test //planted:passes --test_env=PLUMBLINE_SEED=7" in result.output


def test_garbage_is_looked_for_while_tests_run_and_not_among_what_was_imported() -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
