"""From the table to the processes of the local cluster, and what its commands say where none runs."""

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.tools.devices.machines import amd
from tools.bazel.starlark import starlark
from tools.devices.check import MARKER, Place, place
from tools.devices.detect import by_accelerator, devices
from tools.devices.lease import FOLDER, ON_WORKERS
from tools.pools import cluster, jobs, supervisor
from tools.pools.services import (
    Layout,
    Service,
    Worker,
    buildgrid_yaml,
    described,
    device_files,
    nginx_conf,
    system_mounts,
    worker_service,
    workers,
    write_configurations,
)
from tools.pools.store import check, damaged, objects
from tools.pools.table import TABLE

NAMES = starlark(Path(TABLE).read_text())
POOLS = NAMES["pools"]()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("state/run", "state/logs", "engine/usr/bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("buildbox-worker", "buildbox-run-bubblewrap", "bwrap"):
        (tmp_path / "engine/usr/bin" / name).touch()
    return Layout(tmp_path / "engine", tmp_path / "state", 50999, 20)


def test_every_pool_of_the_table_has_a_worker_and_a_card_is_one_actions_alone() -> None:
    rows = workers(NAMES, [], cpus=3)
    assert [row.pool for row in rows] == list(POOLS)
    assert [row.slots for row in rows] == [3] + [1] * (len(POOLS) - 1)
    assert [row.pool for row in rows if not row.simulated] == ["cpu"]
    assert [row.pool for row in workers(NAMES, ["gpu-amd", "cpu"], cpus=1)] == ["cpu", "gpu-amd"]
    assert [row.name for row in workers(NAMES, ["cpu"], cpus=1, each=2)] == ["worker-cpu", "worker-cpu-2"]


def binds(command: list[str], kind: str) -> list[tuple[str, str]]:
    """What an action finds of this machine, as (here, there)."""
    option = f"--runner-arg=--{kind}="
    pairs = [word.removeprefix(option).split(":") for word in command if word.startswith(option)]
    return [(here, there) for here, there in pairs]


def test_cards_that_are_here_are_handed_in_with_the_files_of_their_leases(layout: Layout, tmp_path: Path) -> None:
    found = by_accelerator(devices(amd(tmp_path / "machine", 5), ""))
    (tmp_path / "machine/dev/kfd").touch()
    rows = workers(NAMES, [], cpus=2, cards=found, root=tmp_path / "machine")
    real = {row.pool: row for row in rows if not row.simulated}
    assert {pool: row.slots for pool, row in real.items()} == {"cpu": 2, "gpu-amd": 5, "gpu-amd-x4": 1}
    for pool in ("gpu-amd", "gpu-amd-x4"):
        command = worker_service(layout, real[pool], [("/usr", "/usr")]).command
        assert binds(command, "bind-mount") == [(each, each) for each in ("/dev/kfd", "/dev/dri")]
        assert {("/sys", "/sys"), (str(FOLDER), str(ON_WORKERS))} <= set(binds(command, "ro-bind-mount"))
        assert not [there for _, there in binds(command, "ro-bind-mount") if there.startswith("/dev")], "hidden again"
        assert real[pool].hardware == "gfx942 0x74a1, 192 GiB, driver 6.12.12"
    write_configurations(layout, rows, "")
    assert described(layout.state)[1] == rows
    here = place(layout.state / "pool-gpu-amd-x4")
    assert here == Place("gpu-amd-x4", simulated=False, hardware=real["gpu-amd-x4"].hardware)
    three = workers(NAMES, [], cpus=2, cards={"gpu-amd": found["gpu-amd"][:3]}, root=tmp_path / "machine")
    assert [row.pool for row in three if not row.simulated] == ["cpu", "gpu-amd"], "four are not here"


def test_device_files_of_nvidias_are_those_that_are_here(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    found = device_files(NAMES["ACCELERATORS"]["gpu-nvidia"].device_files, tmp_path)
    assert sorted(found) == ["/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"]


def test_a_pool_that_is_not_in_the_table_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"--pools: 'gpu-adm'; expected some of cpu, gpu-amd.* hint:"):
        workers(NAMES, ["gpu-adm"], cpus=1)


def test_the_scheduler_knows_the_started_pools_and_no_other_and_the_cpus_is_the_first(layout: Layout) -> None:
    text = buildgrid_yaml(layout, ["cpu", "gpu-amd-x4"])
    assert re.findall(r"label: (\S+), properties: \[\[Pool, (\S+)\]\]", text) == [("cpu", "cpu"), ("gpu-amd-x4",) * 2]


def test_workers_advertise_the_property_that_targets_ask_for(layout: Layout) -> None:
    (property_of_all,) = re.findall(r"--remote_default_exec_properties=(\w+)=cpu\n", Path(".bazelrc").read_text())
    command = worker_service(layout, Worker("gpu-amd", 1, True), [("/usr", "/usr")]).command
    assert f"--platform={property_of_all}=gpu-amd" in command
    assert f"--runner-arg=--ro-bind-mount={layout.state}/pool-gpu-amd:{MARKER}" in command
    assert f'_MARKER = "{MARKER}"\n' in Path("tools/pools/route.bzl").read_text()
    assert binds(command, "bind-mount") == [], "an action could write it"


def test_only_loopback_reaches_the_cluster(layout: Layout) -> None:
    assert re.findall(r"listen (.*);", nginx_conf(layout, "root")) == ["127.0.0.1:50999"]
    assert "unix:" in buildgrid_yaml(layout, ["cpu"]).split("address: ")[1].splitlines()[0]
    (default,) = re.findall(r"--remote_executor=(\S+)\n", Path(".bazelrc").read_text())
    assert Layout(layout.engine, layout.state, cluster.PORT, 20).address == default


def test_what_was_started_can_be_read_again(layout: Layout) -> None:
    rows = workers(NAMES, ["cpu", "gpu-intel"], cpus=2)
    write_configurations(layout, rows, "")
    assert described(layout.state) == (layout, rows)
    assert (layout.state / "pool-cpu").read_text() == "cpu\n"
    assert place(layout.state / "pool-cpu") == Place("cpu", simulated=False, hardware="")
    assert place(layout.state / "pool-gpu-intel") == Place("gpu-intel", simulated=True, hardware="")
    assert place(layout.state / "pool-of-none") is None


def test_an_action_sees_programs_and_the_interpreter_and_no_home(tmp_path: Path) -> None:
    for name in ("bin", "include"):
        (tmp_path / "usr" / name).mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "lib").mkdir()
    for name in ("alternatives", "ssh"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    assert system_mounts(tmp_path, Path("/opt/python")) == [
        ("/usr", "/usr"),
        (str(tmp_path / "usr/bin"), "/bin"),
        (str(tmp_path / "lib"), "/lib"),
        (str(tmp_path / "usr/include"), "/include"),
        (str(tmp_path / "etc/alternatives"), "/etc/alternatives"),
        ("/opt/python", "/opt/python"),
    ]
    assert len(system_mounts(tmp_path, Path("/usr/local"))) == 5


def test_an_action_is_nobody_in_its_own_eyes_whoever_the_worker_is(layout: Layout) -> None:
    """Else what makes namespaces of its own, as `nodes_test` does, could not on a worker of root."""
    write_configurations(layout, [Worker("cpu", 1, False)], "")
    service = worker_service(layout, Worker("cpu", 1, False), [])
    found = shutil.which("bwrap", path=service.environment["PATH"])
    assert found == str(layout.wrappers / "bwrap")
    (layout.engine / "usr/bin/bwrap").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (layout.engine / "usr/bin/bwrap").chmod(0o755)
    words = ["--bind", "a b", "/", "--uid", "0", "--gid", "0", "--dev", "/dev"]
    action = ["id", "--uid", "0", "*"]
    said = subprocess.run([found, *words, *action], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [*("65534" if word == "0" else word for word in words), *action]


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
    watcher = supervisor.Supervisor(layout, [], [service], [])
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
    watcher = supervisor.Supervisor(layout, [service], [], [])
    watcher._start(service)
    with pytest.raises(supervisor.ServiceError, match=r"(?s)broken: ended with 1; .*broken.log ends with\n +no such"):
        watcher._wait_for(service)


def arguments(state: Path, *words: str) -> argparse.Namespace:
    return cluster.parse([*words, "--state", str(state)])


def stored(state: Path, content: bytes) -> Path:
    name = hashlib.sha256(content).hexdigest()
    file = state / "store/cas/objects" / name[:2] / name[2:]
    file.parent.mkdir(parents=True, exist_ok=True)
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


def test_what_is_damaged_is_gone_before_a_store_is_believed_again(layout: Layout, capsys) -> None:
    good, bad = stored(layout.state, b"good"), stored(layout.state, b"1234")
    bad.write_bytes(b"1235")
    store = Service("casd", [sys.executable, "-c", "import time; time.sleep(600)"])
    watcher = supervisor.Supervisor(layout, [store], [], [])
    watcher._check()
    assert (good.exists(), bad.exists()) == (True, False)
    assert capsys.readouterr().out.startswith(f"{bad}: its bytes have another digest, removed\nchecked 2 objects in ")
    # Killed while it wrote: what it left is looked at before another one starts.
    watcher._start(store)
    half = stored(layout.state, b"half of it")
    half.write_bytes(b"half")
    watcher.running["casd"].kill()
    watcher.running["casd"].wait()
    watcher._watch()
    told = supervisor.read(layout.state)
    watcher._end()
    assert (good.exists(), half.exists()) == (True, False)
    assert told is not None
    assert (told.num_damaged, told.phase, told.services["casd"]["restarts"]) == (2, "starting", 1)


def test_after_a_crash_only_what_was_touched_since_is_looked_at(tmp_path: Path) -> None:
    stored(tmp_path, b"old").write_bytes(b"odd")
    assert check(tmp_path / "store", remove=False, since=time.time() + 60).num_objects == 0
    found = check(tmp_path / "store", remove=False, since=time.time() - 60)
    assert (found.num_objects, len(found.damaged)) == (1, 1)


def test_what_waits_for_a_pool_without_a_worker_is_refused_by_name(layout: Layout, monkeypatch) -> None:
    now, there, refused = {"s": 100.0}, {"pools": {"cpu", "gpu-amd"}}, []
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now["s"])
    monkeypatch.setattr(jobs, "pools_with_workers", lambda _: there["pools"])
    monkeypatch.setattr(jobs, "pools_in_queue", lambda _: {"cpu": ["a"], "gpu-amd": ["b", "c"]})
    monkeypatch.setattr(jobs, "refuse", lambda _, names, why: refused.append((names, why)))
    watcher = supervisor.Supervisor(layout, [], [], ["cpu", "gpu-amd"])
    for seconds, pools in [(0, {"cpu", "gpu-amd"}), (5, {"cpu"}), (24, {"cpu"}), (26, None)]:
        now["s"], there["pools"] = 100.0 + seconds, pools
        watcher._refuse_what_nobody_takes()
        assert refused == [], "one that was killed is given its time, and a database that is away says nothing"
    now["s"], there["pools"] = 127.0, {"cpu"}
    watcher._refuse_what_nobody_takes()
    ((names, why),) = refused
    assert names == ["b", "c"], "and nothing of the pool that has one"
    assert why.startswith("pool gpu-amd has had no worker for 22 s; expected one within 20. hint: ./bazelw run")
    # It came back, and is given its time anew.
    for seconds, pools in [(28, {"cpu", "gpu-amd"}), (30, {"cpu"}), (49, {"cpu"})]:
        now["s"], there["pools"] = 100.0 + seconds, pools
        watcher._refuse_what_nobody_takes()
    assert len(refused) == 1


def test_what_workers_hand_back_again_and_again_is_refused_with_where_to_look(layout: Layout, monkeypatch) -> None:
    asked, refused = [], []
    monkeypatch.setattr(jobs, "given_up", lambda _, tries_max: asked.append(tries_max) or ["a"] * (len(asked) - 1))
    monkeypatch.setattr(jobs, "refuse", lambda _, names, why: refused.append((names, why)))
    watcher = supervisor.Supervisor(layout, [], [], ["cpu"])
    watcher._refuse_what_is_tried_in_vain()
    assert refused == []
    watcher._refuse_what_is_tried_in_vain()
    ((names, why),) = refused
    assert (names, asked) == (["a"], [3, 3])
    assert why.startswith("handed back by 3 workers, unfinished; expected a result. hint: is there room in ")
    assert str(layout.store) in why


def test_the_answer_to_what_is_refused_is_one_of_the_protocol(tmp_path: Path) -> None:
    # ExecuteResponse.status is field 3; code and message are fields 1 and 2 of a Status.
    assert jobs.response(9, "no") == bytes([0x1A, 6, 0x08, 9, 0x12, 2]) + b"no"
    long = jobs.response(9, "x" * 300)
    assert long[:3] == bytes([0x1A, 0xB1, 0x02]), "305 bytes, in groups of seven bits"
    assert len(long) == 3 + 305
    digest = hashlib.sha256(long).hexdigest()
    jobs.put(tmp_path / "store", digest, long)
    assert not damaged(next(iter(objects(tmp_path / "store"))))


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
