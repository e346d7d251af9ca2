"""From the table to the processes of the local cluster, and what its commands say where none runs."""

import argparse
import hashlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tools.devices.check import MARKER, place
from tools.pools import cluster, supervisor
from tools.pools.services import (
    Layout,
    Service,
    Worker,
    buildgrid_yaml,
    described,
    nginx_conf,
    system_mounts,
    worker_service,
    workers,
    write_configurations,
)
from tools.pools.table import TABLE, starlark

POOLS = starlark(Path(TABLE).read_text())["pools"]()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("state/run", "state/logs", "engine/usr/bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("buildbox-worker", "buildbox-run-bubblewrap"):
        (tmp_path / "engine/usr/bin" / name).touch()
    return Layout(tmp_path / "engine", tmp_path / "state", 50999, 20)


def test_every_pool_of_the_table_has_a_worker_and_a_card_is_one_actions_alone() -> None:
    rows = workers(POOLS, [], cpus=3)
    assert [row.pool for row in rows] == list(POOLS)
    assert [row.slots for row in rows] == [3] + [1] * (len(POOLS) - 1)
    assert [row.pool for row in rows if not row.simulated] == ["cpu"]
    assert [row.pool for row in workers(POOLS, ["gpu-amd", "cpu"], cpus=1)] == ["cpu", "gpu-amd"]


def test_a_pool_that_is_not_in_the_table_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"--pools: 'gpu-adm'; expected some of cpu, gpu-amd.* hint:"):
        workers(POOLS, ["gpu-adm"], cpus=1)


def test_the_scheduler_knows_the_started_pools_and_no_other_and_the_cpus_is_the_first(layout: Layout) -> None:
    text = buildgrid_yaml(layout, ["cpu", "gpu-amd-x4"])
    assert re.findall(r"label: (\S+), properties: \[\[Pool, (\S+)\]\]", text) == [("cpu", "cpu"), ("gpu-amd-x4",) * 2]


def test_workers_advertise_the_property_that_targets_ask_for(layout: Layout) -> None:
    (property_of_all,) = re.findall(r"--remote_default_exec_properties=(\w+)=cpu\n", Path(".bazelrc").read_text())
    command = worker_service(layout, Worker("gpu-amd", 1, True), [("/usr", "/usr")]).command
    assert f"--platform={property_of_all}=gpu-amd" in command
    assert f"--runner-arg=--ro-bind-mount={layout.state}/pool-gpu-amd:{MARKER}" in command
    assert f'_MARKER = "{MARKER}"\n' in Path("tools/pools/route.bzl").read_text()
    assert not [each for each in command if "--bind-mount=" in each and "--ro-" not in each], "an action could write it"


def test_only_loopback_reaches_the_cluster(layout: Layout) -> None:
    assert re.findall(r"listen (.*);", nginx_conf(layout, "root")) == ["127.0.0.1:50999"]
    assert "unix:" in buildgrid_yaml(layout, ["cpu"]).split("address: ")[1].splitlines()[0]
    (default,) = re.findall(r"--remote_executor=(\S+)\n", Path(".bazelrc").read_text())
    assert Layout(layout.engine, layout.state, cluster.PORT, 20).address == default


def test_what_was_started_can_be_read_again(layout: Layout) -> None:
    rows = workers(POOLS, ["cpu", "gpu-intel"], cpus=2)
    write_configurations(layout, rows, "")
    assert described(layout.state) == (layout, rows)
    assert (layout.state / "pool-cpu").read_text() == "cpu\n"
    assert place(layout.state / "pool-cpu") == "; on a worker of pool cpu"
    assert place(layout.state / "pool-gpu-intel").startswith("; on a worker of pool gpu-intel, which is simulated: ")
    assert place(layout.state / "pool-of-none") == ""


def test_an_action_sees_programs_and_the_interpreter_and_no_home(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "lib").mkdir()
    assert system_mounts(tmp_path, Path("/opt/python")) == [
        ("/usr", "/usr"),
        (str(tmp_path / "usr/bin"), "/bin"),
        (str(tmp_path / "lib"), "/lib"),
        ("/opt/python", "/opt/python"),
    ]
    assert len(system_mounts(tmp_path, Path("/usr/local"))) == 3


def test_a_state_directory_too_deep_for_a_socket_is_refused(layout: Layout) -> None:
    deep = Layout(layout.engine, Path("/" + "d" * 100), 1, 1)
    assert str(deep.problem).startswith("--state: /ddd")
    assert Layout(layout.engine, Path("/short"), 1, 1).problem is None


def test_mounts_that_a_killed_store_left_are_found_innermost_first() -> None:
    line = "36 35 98:0 / {} rw,noatime master:1 - fuse buildbox rw"
    places = ["/s/store/cas/a", "/s/store/cas/a/b\\040c", "/s/storefront", "/proc"]
    found = supervisor.left_mounts(Path("/s/store"), "\n".join(line.format(place) for place in places))
    assert found == ["/s/store/cas/a/b c", "/s/store/cas/a"]


def test_a_service_that_dies_is_started_again_and_takes_its_children_with_it(layout: Layout) -> None:
    forking = "import os, time; child = os.fork(); child and print(child, flush=True); time.sleep(600)"
    service = Service("sleeper", [sys.executable, "-c", forking])
    watcher = supervisor.Supervisor(layout, [], [service])
    watcher._start(service)
    first = watcher.running["sleeper"].pid
    while not (told := watcher.log("sleeper").read_text().split()):
        pass
    os.kill(first, signal.SIGKILL)
    watcher.running["sleeper"].wait()
    watcher._watch()
    state = supervisor.read(layout.state)
    assert state is not None
    assert state.services["sleeper"]["restarts"] == 1
    assert state.services["sleeper"]["pid"] != first
    watcher._end()
    assert watcher.running["sleeper"].poll() is not None
    assert not _alive(int(told[0])), "what the dead service had started runs on"


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked for yet does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_service_that_does_not_start_is_named_with_the_end_of_its_log(layout: Layout) -> None:
    service = Service(
        "broken", [sys.executable, "-c", "import sys; sys.exit('no such thing')"], layout.socket("broken")
    )
    watcher = supervisor.Supervisor(layout, [service], [])
    watcher._start(service)
    with pytest.raises(supervisor.ServiceError, match=r"(?s)broken: ended with 1; .*broken.log ends with\n +no such"):
        watcher._wait_for(service)


def arguments(state: Path, *words: str) -> argparse.Namespace:
    return cluster.parse([*words, "--state", str(state)])


def stored(state: Path, content: bytes) -> Path:
    name = hashlib.sha256(content).hexdigest()
    file = state / "store/cas/objects" / name[:2] / name[2:]
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_check_finds_an_object_of_the_right_size_with_other_bytes_and_can_remove_it(tmp_path, capsys) -> None:
    good, bad = stored(tmp_path, b"good"), stored(tmp_path, b"1234")
    assert cluster.check(arguments(tmp_path, "check")) == 0
    bad.write_bytes(b"1235")
    assert cluster.check(arguments(tmp_path, "check")) == cluster.UNAVAILABLE
    assert f"{bad}: its bytes have another digest\n" in capsys.readouterr().out
    assert cluster.check(arguments(tmp_path, "check", "--remove")) == 0
    assert (good.exists(), bad.exists()) == (True, False)


def test_where_no_cluster_runs_status_says_how_to_start_one_and_down_has_nothing_to_do(tmp_path, capsys) -> None:
    assert cluster.status(arguments(tmp_path / "none", "status")) == cluster.UNAVAILABLE
    assert "no cluster runs in" in capsys.readouterr().err
    assert cluster.down(arguments(tmp_path / "none", "down")) == 0
    assert cluster.down(arguments(tmp_path, "down")) == 0


def test_a_state_directory_has_one_supervisor(tmp_path: Path) -> None:
    held = supervisor.lock(tmp_path)
    assert held is not None
    assert supervisor.lock(tmp_path) is None
    os.close(held)
    assert supervisor.lock(tmp_path) is not None
