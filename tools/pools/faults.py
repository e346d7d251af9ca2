"""`./bazelw run //tools/pools:faults`: breaks a cluster of its own in each known way, and says what came of it.

It is a command and no test: a cluster needs /dev/fuse and a download, and builds on it need a Bazel beside the one that
would run the test. The cluster has another port and directory than the one of `up`, so that one may go on running.
"""

import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.pools import cluster, supervisor
from tools.pools.engine import cache, interpreter
from tools.pools.jobs import ran, registered
from tools.pools.services import Layout, Worker, described, system_mounts, worker_service
from tools.pools.store import objects

PORT = 50163
HTTP_PORT = 50164
POOLS = "cpu,gpu-amd,gpu-nvidia"
WORKERS = 2
"""Of each pool, so that one can do what another has left."""

SLOW, PLAIN, ABSENT, LARGE = (f"//tools/pools:routes.{name}" for name in ("slow", "cpu", "gpu-nvidia", "large"))
TEST = "//tests/unit/tools/bazel/planted:waits"
"""A test of the cpu that takes as long as the slow action."""

HERE = "//tools/pools:routes.here"
"""An action that ends well on this machine."""

NOWHERE, NOT_STARTED = (f"//tools/pools:routes.{name}" for name in ("nowhere", "gpu-intel"))
HIT = "1 remote cache hit"
DOOR = "127.0.0.2"
"""The address of the door with TLS and tokens, which might as well be one that other machines reach."""

SECONDS_MAX = 180
REMOTE_ERROR = 34
"""Bazel's exit code for a farm that fails."""


class DrillError(Exception):
    """What came of a fault is not what should."""


@dataclass(frozen=True)
class Build:
    """One build on the cluster, ended."""

    code: int
    output: str
    seconds: float

    def expect(self, code: int, *texts: str) -> "Build":
        """This build, if it ended so and said so.

        Raises:
            DrillError: it did not.
        """
        missing = [text for text in texts if text not in self.output]
        if self.code != code or missing:
            raise DrillError(f"exit {self.code}, expected {code}; not said: {missing}; said:\n{self.output[-1500:]}")
        return self


class Drill:
    """A cluster to break, and a Bazel that builds on it."""

    def __init__(self, state: Path) -> None:
        """Starts nothing."""
        words = ["--port", str(PORT), "--pools", POOLS, "--cpus", "1", "--workers", str(WORKERS), "--listen", DOOR]
        self.arguments = cluster.parse(["up", "--state", str(state), *words])
        self.state: Path = self.arguments.state
        self.token = 0

    @property
    def layout(self) -> Layout:
        """Of the running cluster."""
        return described(self.state)[0]

    def start(self, target: str, *options: str, place: str = "remote", port: int = PORT) -> "subprocess.Popen[str]":
        """A build of what no one has built yet."""
        self.token += 1
        fresh = f"--action_env=PLUMBLINE_DRILL={os.getpid()}.{self.token}"
        where = {
            "remote": f"--remote_executor=grpc://127.0.0.1:{port}",
            "cache": f"--remote_cache=grpc://127.0.0.1:{port}",
            "http": f"--remote_cache=http://127.0.0.1:{port}",
            "disk": f"--disk_cache={self.state / 'disk'}",
        }
        command = [
            str(cluster.workspace() / "bazelw"),
            "test" if target == TEST else "build",
            f"--config={place.replace('http', 'cache')}",
            where[place],
            fresh,
            *options,
            target,
        ]
        command += ["--curses=no", "--color=no", "--noshow_progress"]
        return subprocess.Popen(
            command, cwd=cluster.workspace(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self, started: "subprocess.Popen[str]", since: float) -> Build:
        """What came of it."""
        try:
            output, _ = started.communicate(timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            started.send_signal(signal.SIGINT)
            raise DrillError(f"still building after {SECONDS_MAX} s") from None
        return Build(started.returncode, output, time.monotonic() - since)

    def build(self, target: str, *options: str, place: str = "remote", port: int = PORT) -> Build:
        """A build from start to end."""
        since = time.monotonic()
        return self.end(self.start(target, *options, place=place, port=port), since)

    def kill(self, service: str, number: int) -> Build:
        """The slow build, in whose middle a service gets a signal: the worker that has it, if it is a worker."""
        since = time.monotonic()
        started = self.start(SLOW)
        busy = self.busy(started, since, "worker-gpu-amd")
        os.kill(self.service(busy if service == "worker" else service), number)
        return self.end(started, since)

    def busy(self, started: "subprocess.Popen[str]", since: float, beginning: str) -> str:
        """The worker that a build has come to, when it has been there for a while."""
        while not (
            found := [name for name, busy in registered(self.layout).items() if busy and name.startswith(beginning)]
        ):
            if started.poll() is not None or time.monotonic() - since > SECONDS_MAX:
                raise DrillError(f"it never came to its worker:\n{self.end(started, since).output[-1500:]}")
            time.sleep(0.1)
        time.sleep(2)
        return found[0]

    @contextmanager
    def gone(self, pool: str) -> Iterator[None]:
        """For a while a pool's workers are there and answer nothing, until the scheduler counts on them no more."""
        services = [row.name for row in described(self.state)[1] if row.pool == pool]
        processes = [self.service(name) for name in services]
        since = time.monotonic()
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            while registered(self.layout).keys() & set(services):
                if time.monotonic() - since > SECONDS_MAX:
                    raise DrillError("workers that answer nothing are counted on")
                time.sleep(0.5)
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGKILL)

    def again(self, target: str) -> None:
        """Has the next build ask for what the last one asked for, and not find it here."""
        self.token -= 1
        (cluster.workspace() / f"bazel-bin/tools/pools/{target.rpartition(':')[2]}.txt").unlink()

    def service(self, name: str) -> int:
        """The process of a service."""
        told = supervisor.read(self.state)
        assert told is not None
        return told.services[name]["pid"]

    def settle(self) -> None:
        """Waits until every pool has its worker again."""
        since = time.monotonic()
        while len(registered(self.layout)) < len(POOLS.split(",")) * WORKERS:
            if time.monotonic() - since > 90:
                raise DrillError("the cluster is not whole again after 90 s")
            time.sleep(0.5)


def killed(service: str, number: int) -> Callable[[Drill], str]:
    """The fault that a service dies in the middle of an action: the build has to end well all the same."""

    def fault(drill: Drill) -> str:
        build = drill.kill(service, number).expect(0)
        return f"green in {build.seconds:.0f} s"

    return fault


def nowhere(drill: Drill) -> str:
    """A pool that no table names."""
    build = drill.build(NOWHERE).expect(REMOTE_ERROR, "('Pool', 'nowhere')")
    return f"refused by name in {build.seconds:.0f} s, of which the cluster has {_critical(build)}"


def not_started(drill: Drill) -> str:
    """A pool of the table that this cluster lacks."""
    build = drill.build(NOT_STARTED).expect(REMOTE_ERROR, "('Pool', 'gpu-intel')")
    return f"refused by name in {build.seconds:.0f} s, of which the cluster has {_critical(build)}"


def no_worker(drill: Drill) -> str:
    """A pool that the cluster has, whose workers hang."""
    with drill.gone("gpu-nvidia"):
        first = drill.build(ABSENT).expect(REMOTE_ERROR, "pool gpu-nvidia has had no worker for")
        later = drill.build(ABSENT).expect(REMOTE_ERROR, "pool gpu-nvidia has had no worker for")
    return f"refused by name in {first.seconds:.0f} s, what comes later in {later.seconds:.0f} s"


def retried(drill: Drill) -> str:
    """The worker of a test is killed in its middle, and does not come back: another one of its pool runs it again."""
    told = supervisor.read(drill.state)
    assert told is not None
    since = time.monotonic()
    started = drill.start(TEST)
    # What builds the test goes to the same pool.
    while not (found := [each for each in ran(drill.layout) or () if each.target.endswith(TEST) and each.is_test]):
        if started.poll() is not None or time.monotonic() - since > SECONDS_MAX:
            raise DrillError(f"it never came to its worker:\n{drill.end(started, since).output[-1500:]}")
        time.sleep(0.1)
    time.sleep(2)
    killed_one = found[0].worker
    # Who would start it again.
    os.kill(told.pid, signal.SIGSTOP)
    try:
        os.killpg(drill.service(killed_one), signal.SIGKILL)
        build = drill.end(started, since).expect(0, "1 test passes")
    finally:
        os.kill(told.pid, signal.SIGCONT)
    (test,) = [each for each in ran(drill.layout) or () if each.target.endswith(TEST) and each.is_test]
    if test.tries != 2 or test.worker == killed_one:
        raise DrillError(f"not run again by another worker than {killed_one}: {test}")
    return f"run again on another worker of its pool; green in {build.seconds:.0f} s"


def clocks(drill: Drill) -> str:
    """The only worker of a pool has a clock that is an hour ahead of everybody's, or behind."""
    seconds = []
    with drill.gone("gpu-nvidia"):
        for number, ahead in enumerate(("+3600s", "-3600s")):
            worker = Worker("gpu-nvidia", 1, True, number=8 + number)
            service = worker_service(drill.layout, worker, system_mounts(Path("/"), interpreter().parent.parent))
            (library,) = drill.layout.engine.glob("usr/lib/*/faketime/libfaketimeMT.so.1")
            clock = {"LD_PRELOAD": str(library), "FAKETIME": ahead, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
            # Its runner and bwrap are linked as it is; a script that stands before one of them would be this machine's.
            path = os.pathsep.join(drill.layout.path)
            home = {"PATH": path, "HOME": str(drill.layout.sockets), "TMPDIR": str(drill.state / "tmp")}
            with (drill.state / "logs/worker-of-another-hour.log").open("ab") as log:
                process = subprocess.Popen(
                    service.command,
                    env={**home, **clock},
                    cwd=drill.state,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            try:
                since = time.monotonic()
                while worker.name not in registered(drill.layout):
                    if time.monotonic() - since > 60 or process.poll() is not None:
                        raise DrillError(f"no worker whose clock says {ahead}")
                    time.sleep(0.2)
                seconds.append(drill.build(ABSENT).expect(0, "1 remote").seconds)
            finally:
                process.terminate()
                process.wait()
    return f"green, in {seconds[0]:.0f} and {seconds[1]:.0f} s"


def full(drill: Drill) -> str:
    """The disk of a cluster has room for 96 MiB, and an action leaves twice that."""
    state = drill.state / "full"
    (state / "store").mkdir(parents=True)
    words = ["--state", str(state), "--port", str(HTTP_PORT), "--pools", "cpu", "--cpus", "1", "--store-gib", "0.06"]
    mount = f'mount -t tmpfs -o size=96m tmpfs {state / "store"} && exec "$@"'
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    begun = subprocess.run(
        [*alone, sys.executable, cluster.__file__, "up", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if begun.returncode:
        raise DrillError(f"no cluster:\n{begun.stdout}{begun.stderr}")
    arguments = cluster.parse(["down", "--state", str(state)])
    try:
        drill.build(PLAIN, port=HTTP_PORT).expect(0)
        build = drill.build(LARGE, port=HTTP_PORT).expect(REMOTE_ERROR, "handed back by 3 workers", "is there room in")
        drill.build(PLAIN, port=HTTP_PORT).expect(0, "1 remote")
    finally:
        cluster.down(arguments)
    return f"tried by three workers, then refused in {build.seconds:.0f} s with the folder; the next action is green"


def spoilt_disk(drill: Drill) -> str:
    """A cache on this disk has lost what it stored, or has other bytes of it, or half of them."""
    outcome = []
    made = cluster.workspace() / "bazel-bin/tools/pools/routes.here.txt"
    hit = "1 disk cache hit"
    for kind, (name, way) in itertools.product(("ac", "cas"), WAYS.items()):
        shutil.rmtree(drill.state / "disk", ignore_errors=True)
        drill.build(HERE, place="disk").expect(0)
        drill.again(HERE)
        drill.build(HERE, place="disk").expect(0, hit)
        for file in (path for path in (drill.state / "disk" / kind).rglob("*") if path.is_file()):
            other = way(file.read_bytes())
            file.chmod(0o644)
            file.unlink() if other is None else file.write_bytes(other)
        drill.again(HERE)
        build = drill.build(HERE, place="disk").expect(0)
        if hit in build.output or made.read_text(encoding="utf-8") != "here\n":
            raise DrillError(f"{kind} {name} was believed:\n{build.output[-1500:]}")
        drill.again(HERE)
        if hit not in drill.build(HERE, place="disk").expect(0).output:
            outcome.append(f"{kind} {name}")
    return (
        f"built here, green; stored again but for {', '.join(outcome)}"
        if outcome
        else "built here, green, stored again"
    )


WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda _: None,
    "flipped": lambda whole: bytes(byte ^ 255 for byte in whole),
    "cut": lambda whole: whole[: len(whole) // 2],
}
"""What can become of a file."""


def _critical(build: Build) -> str:
    return build.output.partition("Critical Path: ")[2].partition("\n")[0]


def no_server(drill: Drill) -> str:
    """Nothing answers where the cluster should be: bazelw says so, for Bazel would wait without end."""
    build = drill.build(PLAIN, port=1).expect(REMOTE_ERROR, "nobody listens at grpc://127.0.0.1:1")
    return f"refused in {build.seconds:.0f} s, by its address, and nothing ran here instead"


def no_cache(drill: Drill) -> str:
    """Nothing answers where the cache should be: what is built here does without."""
    build = drill.build("//tools/pools:requirements.in", place="cache", port=1).expect(0)
    return f"green in {build.seconds:.0f} s, built here"


def poisoned(drill: Drill) -> str:
    """A cache by HTTP has lost what it stored, or has other bytes of it, or half of them."""
    arguments = cluster.parse(["cache", "--state", str(drill.state / "http"), "--port", str(HTTP_PORT)])
    if cluster.http_cache(arguments):
        raise DrillError("no cache")
    made = cluster.workspace() / "bazel-bin/tools/pools/routes.here.txt"
    try:
        for kind, way in itertools.product(("ac", "cas"), WAYS.values()):
            drill.build(HERE, place="http", port=HTTP_PORT).expect(0)
            for file in (drill.state / "http/store" / kind).iterdir():
                other = way(file.read_bytes())
                file.unlink() if other is None else file.write_bytes(other)
            drill.again(HERE)
            build = drill.build(HERE, place="http", port=HTTP_PORT).expect(0)
            if HIT in build.output or made.read_text(encoding="utf-8") != "here\n":
                raise DrillError(f"damaged {kind} was believed:\n{build.output[-1500:]}")
            drill.again(HERE)
            drill.build(HERE, place="http", port=HTTP_PORT).expect(0, HIT)
    finally:
        cluster.down(arguments)
    return "built here, green, and stored again: the next one is a hit"


def missing(drill: Drill) -> str:
    """Every stored object is gone while Bazel believes that it is there."""
    drill.build(PLAIN).expect(0)
    for file in objects(drill.layout.store):
        # Bazel takes for granted that everybody has the empty one.
        if file.stat().st_size:
            file.unlink()
    build = drill.build(SLOW).expect(0)
    return f"uploaded again, green in {build.seconds:.0f} s"


def damaged(drill: Drill) -> str:
    """A stored object has other bytes of the same length."""
    file = _damage(drill)
    if cluster.check(cluster.parse(["check", "--state", str(drill.state)])) == 0:
        raise DrillError("not found")
    cluster.check(cluster.parse(["check", "--state", str(drill.state), "--remove"]))
    if file.exists():
        raise DrillError("not removed")
    build = drill.build(SLOW).expect(0)
    return f"found and removed by :check, green again in {build.seconds:.0f} s"


def _damage(drill: Drill) -> Path:
    drill.build(PLAIN).expect(0)
    file = max(objects(drill.layout.store), key=lambda each: each.stat().st_size)
    file.chmod(0o644)
    file.write_bytes(bytes(byte ^ 255 for byte in file.read_bytes()))
    return file


def believed_no_more(drill: Drill) -> str:
    """A stored object has other bytes when the store is killed, or the cluster starts: nobody asks for a check."""
    file = _damage(drill)
    os.kill(drill.service("casd"), signal.SIGKILL)
    since = time.monotonic()
    while file.exists():
        if time.monotonic() - since > SECONDS_MAX:
            raise DrillError("still there after the store was started again")
        time.sleep(0.1)
    seconds = time.monotonic() - since
    drill.settle()
    drill.build(SLOW).expect(0)
    file = _damage(drill)
    cluster.down(drill.arguments)
    cluster.up(drill.arguments)
    told = supervisor.read(drill.state)
    if file.exists() or told is None or told.num_damaged != 1:
        raise DrillError("still there after the cluster was started again")
    drill.build(SLOW).expect(0)
    return f"removed before anybody believes it, {seconds:.0f} s after the store was killed; green"


def slow_network(drill: Drill) -> str:
    """Each packet between Bazel and the cluster takes 200 ms longer, both ways."""
    with _way(lambda: socket.create_connection(("127.0.0.1", PORT)), 0.2) as port:
        build = drill.build(PLAIN, port=port).expect(0)
    return f"green in {build.seconds:.0f} s"


@contextmanager
def _way(connect: Callable[[], socket.socket], delay: float = 0) -> Iterator[int]:
    """A port of loopback that leads elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, connect, delay), daemon=True).start()
        yield listener.getsockname()[1]


def _through_the_door(keys: Path) -> socket.socket:
    """A connection to the door for other machines, whose certificate is verified; Debian's Bazel has no TLS."""
    context = ssl.create_default_context(cafile=str(keys / "tls.crt"))
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(socket.create_connection((DOOR, PORT)), server_hostname=DOOR)


def _token(drill: Drill, role: str) -> str:
    token = (drill.layout.keys / f"{role}.token").read_text(encoding="utf-8").strip()
    return f"--remote_header=Authorization=Bearer {token}"


def writer(drill: Drill) -> str:
    """Who has the token comes in."""
    with _way(lambda: _through_the_door(drill.layout.keys)) as port:
        build = drill.build(PLAIN, _token(drill, "writer"), port=port).expect(0, "1 remote")
    return f"green in {build.seconds:.0f} s"


def nobody(drill: Drill) -> str:
    """Who has no token, or an invented one, is told nothing; and without TLS there is no door."""
    with _way(lambda: _through_the_door(drill.layout.keys)) as port:
        refused = drill.build(PLAIN, port=port).expect(REMOTE_ERROR, "HTTP status code 401")
        invented = "--remote_header=Authorization=Bearer invented"
        drill.build(PLAIN, invented, port=port).expect(REMOTE_ERROR, "HTTP status code 401")
    with _way(lambda: socket.create_connection((DOOR, PORT))) as port:
        drill.build(PLAIN, "--remote_retries=0", port=port).expect(REMOTE_ERROR)
    return f"refused in {refused.seconds:.0f} s, and nothing ran here instead"


def reader(drill: Drill) -> str:
    """A reader has the results of others, and can neither run an action there nor leave a result."""
    token = _token(drill, "reader")
    with _way(lambda: _through_the_door(drill.layout.keys)) as port:
        drill.build(PLAIN, token, port=port).expect(REMOTE_ERROR, "Error while uploading")
        # With nothing to upload any more.
        drill.build(PLAIN).expect(0)
        drill.again(PLAIN)
        drill.build(PLAIN, token, "--noremote_accept_cached", port=port).expect(REMOTE_ERROR, "HTTP status code 403")
        # A writer's result, which no Bazel here has any more, is a hit.
        drill.build(HERE, place="cache").expect(0)
        drill.again(HERE)
        drill.build(HERE, token, "--noremote_upload_local_results", place="cache", port=port).expect(0, HIT)
        # One that a reader makes, and tries to leave, is none.
        made = drill.build(HERE, token, place="cache", port=port).expect(0, "Error while uploading")
        drill.again(HERE)
        if HIT in drill.build(HERE, place="cache").expect(0).output:
            raise DrillError("a reader's result was stored")
    return f"hits of what others stored; may store and run nothing, and builds here instead in {made.seconds:.0f} s"


def _serve(listener: socket.socket, connect: Callable[[], socket.socket], delay: float) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return  # The drill is over.
        far = connect()
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=_carry, args=(source, target, delay), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, delay: float) -> None:
    try:
        while data := source.recv(65536):
            time.sleep(delay)
            target.sendall(data)
    except OSError:
        pass
    finally:
        target.close()


def restarted(drill: Drill) -> str:
    """The whole cluster is stopped and started again: what was built before is not built again."""
    drill.build(PLAIN).expect(0)
    cluster.down(drill.arguments)
    cluster.up(drill.arguments)
    drill.again(PLAIN)
    build = drill.build(PLAIN).expect(0, HIT)
    return f"a hit in the cache in {build.seconds:.0f} s"


FAULTS: dict[str, tuple[str, Callable[[Drill], str]]] = {
    "nowhere": ("a pool that no table names", nowhere),
    "not-started": ("a pool of the table without a worker", not_started),
    "no-worker": ("a pool whose workers hang", no_worker),
    "worker-killed": ("worker killed in the middle of an action", killed("worker", signal.SIGKILL)),
    "worker-stopped": ("worker told to end in the middle of an action", killed("worker", signal.SIGTERM)),
    "test-retried": ("worker killed in the middle of a test, for good", retried),
    "clocks": ("a worker's clock is an hour ahead, or behind", clocks),
    "full": ("a full disk: an action leaves more than there is room for", full),
    "disk": ("a cache on this disk that lost or damaged what it stored", spoilt_disk),
    "scheduler-killed": ("BuildGrid killed in the middle of an action", killed("buildgrid", signal.SIGKILL)),
    "queue-killed": ("PostgreSQL killed in the middle of an action", killed("postgresql", signal.SIGQUIT)),
    "store-killed": ("casd killed in the middle of an action", killed("casd", signal.SIGKILL)),
    "door-killed": ("nginx killed in the middle of an action", killed("nginx", signal.SIGKILL)),
    "restarted": ("cluster stopped and started", restarted),
    "missing": ("every stored object gone", missing),
    "damaged": ("a stored object with other bytes", damaged),
    "believed-no-more": ("the same, and the store is killed or the cluster started again", believed_no_more),
    "slow-network": ("200 ms more each way", slow_network),
    "poisoned": ("a cache by HTTP that lost or damaged what it stored", poisoned),
    "writer": ("the token of a writer, by TLS", writer),
    "nobody": ("no token, an invented one, or no TLS", nobody),
    "reader": ("the token of a reader, which strangers may have", reader),
    "no-server": ("no cluster, `--config=remote`", no_server),
    "no-cache": ("no cache, `--config=cache`", no_cache),
}


def main(names: list[str]) -> int:
    """Prints a table of faults and outcomes; fails if one is not as expected."""
    if unknown := [name for name in names if name not in FAULTS]:
        print(f"faults: {', '.join(unknown)}; expected some of {', '.join(FAULTS)}", file=sys.stderr)
        return 2
    cache().mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="drill-", dir=cache()))
    drill, rows, failures = Drill(state), [], 0
    try:
        if cluster.up(drill.arguments):
            return cluster.UNAVAILABLE
        for name in names or FAULTS:
            what, fault = FAULTS[name]
            print(f"faults: {name}", flush=True)
            try:
                outcome = fault(drill)
                drill.settle()
            except DrillError as error:
                failures += 1
                outcome = f"**not as expected**: {str(error).splitlines()[0]}"
                print(error, file=sys.stderr, flush=True)
            rows.append(f"| {what} | {outcome} |")
            print(rows[-1], flush=True)
    finally:
        cluster.down(drill.arguments)
        shutil.rmtree(state, ignore_errors=True)
    print("\n".join(["", "| fault | outcome |", "|---|---|", *rows]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
