"""Keeps the services of the local cluster running until it is told to stop; what dies is started again.

One process, in the background, that holds a lock on the state directory for as long as it lives: who can take the lock
knows that no cluster runs there. What the supervisor knows is in `supervisor.json`, written whole. If it is killed
itself, the kernel ends its services.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from tools.pools import jobs, store
from tools.pools.services import Layout, Service, as_nobody

START_SECONDS_MAX = 60
"""In which a service has to answer; BuildGrid's imports alone take five on a busy machine."""

STOP_SECONDS_MAX = {"casd": 15.0}
"""casd writes out what it holds. All others have nothing to lose: their queue is new at each start."""

STOP_SECONDS = 3.0
SECONDS_WITHOUT_WORKER_MAX = 20
"""In which a worker that was killed is back on a busy machine; what waits for its pool afterwards is refused."""

TRIES_MAX = 3
"""A worker that dies, or is told to end, costs one; what fails so often would fail for ever, on a full disk for one."""

SECONDS_BETWEEN_LOOKS = 3.0
PR_SET_PDEATHSIG = 1


class ServiceError(Exception):
    """A service that does not start."""


@dataclass
class Told:
    """What the supervisor says of itself."""

    pid: int
    phase: str = "starting"
    """checking, starting, up, stopping, or failed."""
    error: str = ""
    started_at: float = field(default_factory=time.time)
    num_damaged: int = 0
    """Objects that were taken out of the store, since they were not what they are named after."""
    services: dict[str, dict[str, int]] = field(default_factory=dict)
    """Name -> its process, and how often it was started again."""


def read(state: Path) -> Told | None:
    """What the last supervisor of a directory said, or None."""
    try:
        return Told(**json.loads((state / "supervisor.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def lock(state: Path) -> int | None:
    """The lock of a directory, as an open file; None if a supervisor has it."""
    file = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def answers(address: Path | int) -> bool:
    """Whether something listens on a socket, or on a port of loopback."""
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(("127.0.0.1", address) if isinstance(address, int) else str(address))
        except OSError:
            return False
    return True


def last_lines(file: Path, count: int = 5) -> str:
    """The end of a log."""
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines() if file.exists() else []
    return "\n".join(f"    {line[:300]}" for line in lines[-count:])


def left_mounts(store: Path, mountinfo: str) -> list[str]:
    """Where the files of actions were shown below the store by a casd that was killed, innermost first."""
    points = [
        re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in mountinfo.splitlines()
    ]
    return sorted((point for point in points if Path(point).is_relative_to(store)), key=len, reverse=True)


def _with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """The services of one cluster."""

    def __init__(self, layout: Layout, services: list[Service], workers: list[Service], pools: list[str]) -> None:
        """Starts nothing."""
        self.layout, self.services, self.workers, self.pools = layout, services, workers, pools
        self.checked_at = 0.0
        self.absent_since: dict[str, float] = {}
        self.looked_at = 0.0
        self.told = Told(os.getpid())
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.stopping = False

    def run(self) -> None:
        """Starts everything, and watches it until SIGTERM; returns when all of it has ended."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        try:
            self._unmount()
            self._check()
            if any(service.name == "postgresql" for service in self.services):
                self._new_queue()
            for service in self.services:
                self._start(service)
                self._wait_for(service)
                if service.name == "postgresql":
                    self._create_database()
            for service in self.workers:
                self._start(service)
            self._tell(phase="up")
            while not self.stopping:
                time.sleep(0.05)
                self._watch()
                if self.pools and time.monotonic() - self.looked_at > SECONDS_BETWEEN_LOOKS:
                    self._refuse_what_nobody_takes()
                    self._refuse_what_is_tried_in_vain()
        except Exception as error:
            # Whoever asked for the cluster reads it there; in the background nobody sees a traceback.
            self._tell(
                phase="failed",
                error=f"{type(error).__name__}: {error}" if not isinstance(error, ServiceError) else str(error),
            )
        finally:
            self._end()

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopping = True

    def _tell(self, phase: str | None = None, error: str = "") -> None:
        self.told.phase = phase or self.told.phase
        self.told.error = error or self.told.error
        file = self.layout.state / "supervisor.json"
        file.with_suffix(".new").write_text(json.dumps(asdict(self.told)), encoding="utf-8")
        file.with_suffix(".new").replace(file)

    def log(self, name: str) -> Path:
        """The file that a service writes."""
        return self.layout.state / "logs" / f"{name}.log"

    def _environment(self, service: Service) -> dict[str, str]:
        return {
            "PATH": os.pathsep.join(self.layout.path),
            "HOME": str(self.layout.sockets),
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(self.layout.state / "tmp"),
            **service.environment,
        }

    def _start(self, service: Service) -> None:
        if isinstance(service.ready, Path):
            service.ready.unlink(missing_ok=True)
        with self.log(service.name).open("ab") as log:
            self.running[service.name] = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.layout.state,
                env=self._environment(service),
                # A session of its own, so that all of it can be ended, also what it leaves behind.
                start_new_session=True,
                preexec_fn=_with_parent,
            )
        restarts = self.told.services.get(service.name, {}).get("restarts", -1) + 1
        self.told.services[service.name] = {"pid": self.running[service.name].pid, "restarts": restarts}
        self._tell()

    def _wait_for(self, service: Service) -> None:
        assert service.ready is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while not answers(service.ready):
            code = self.running[service.name].poll()
            if code is not None or time.monotonic() > deadline or self.stopping:
                how = f"ended with {code}" if code is not None else f"answers nothing after {START_SECONDS_MAX} s"
                raise ServiceError(
                    f"{service.name}: {how}; {self.log(service.name)} ends with\n{last_lines(self.log(service.name))}"
                )
            time.sleep(0.05)

    def _watch(self) -> None:
        """Starts again what has ended, after whatever it left."""
        for service in [*self.services, *self.workers]:
            process = self.running[service.name]
            if process.poll() is None:
                continue
            self._kill_group(process)
            if service.name == "casd":
                # Actions read their files through it: they would fail, as if the fault were theirs.
                for worker in self.workers:
                    self._kill_group(self.running[worker.name])
                self._unmount()
                # What it was writing may be half there, and would be believed.
                self._check()
            # Not at once: what a service needs may be on its way up again as well.
            time.sleep(0.5)
            self._start(service)

    def _check(self) -> None:
        """Takes what is damaged out of the store of casd, which must not run: all of it first, then what is newer."""
        began = time.time()
        if any(service.name == "casd" for service in self.services):
            before = self.told.phase
            self._tell(phase="checking")
            found = store.check(self.layout.store, remove=True, since=self.checked_at)
            for file in found.damaged:
                print(f"{file}: its bytes have another digest, removed", flush=True)
            print(f"checked {found.num_objects} objects in {time.time() - began:.1f} s", flush=True)
            self.told.num_damaged += len(found.damaged)
            self._tell(phase=before)
        self.checked_at = began

    def _refuse_what_nobody_takes(self) -> None:
        """Ends what waits for a pool whose worker has not been there for a while, by name: it would wait for ever."""
        self.looked_at = now = time.monotonic()
        present = jobs.pools_with_workers(self.layout)
        if present is None:
            return
        self.absent_since = {pool: self.absent_since.get(pool, now) for pool in self.pools if pool not in present}
        late = {pool for pool, since in self.absent_since.items() if now - since > SECONDS_WITHOUT_WORKER_MAX}
        for pool, names in jobs.pools_in_queue(self.layout).items() if late else ():
            if pool in late:
                why = f"pool {pool} has had no worker for {now - self.absent_since[pool]:.0f} s; expected one within "
                why += f"{SECONDS_WITHOUT_WORKER_MAX}. hint: ./bazelw run //tools/pools:status"
                jobs.refuse(self.layout, names, why)

    def _refuse_what_is_tried_in_vain(self) -> None:
        """Ends what workers hand back again and again, whose client would send it anew ten times."""
        if names := jobs.given_up(self.layout, TRIES_MAX):
            why = f"handed back by {TRIES_MAX} workers, unfinished; expected a result. "
            why += f"hint: is there room in {self.layout.store}? {self.log('worker-*')} and {self.log('casd')} say why"
            jobs.refuse(self.layout, names, why)

    def _new_queue(self) -> None:
        command = [self.layout.postgres("initdb"), "-D", str(self.layout.state / "queue"), "-U", "plumbline"]
        self._once([*command, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"], "initdb", nobody=True)

    def _create_database(self) -> None:
        client = ["-h", str(self.layout.sockets), "-U", "plumbline"]
        self._retried([self.layout.postgres("createdb"), *client, "plumbline"], "createdb")
        url = f"postgresql+psycopg2://plumbline@/plumbline?host={self.layout.sockets}"
        code = "from buildgrid.server.app import cli; cli()"
        self._once([self.layout.python, "-c", code, "migrate", "apply", url], "migrate")

    def _retried(self, command: list[str], name: str) -> None:
        """A command of a server that listens before it serves."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                return self._once(command, name)
            except ServiceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _once(self, command: list[str], name: str, nobody: bool = False) -> None:
        with self.log(name).open("wb") as log:
            command = as_nobody(self.layout, command) if nobody else command
            environment = self._environment(Service(name, command))
            code = subprocess.run(
                command, stdout=log, stderr=log, cwd=self.layout.state, env=environment, check=False
            ).returncode
        if code:
            raise ServiceError(f"{name}: ended with {code}; {self.log(name)} ends with\n{last_lines(self.log(name))}")

    def _unmount(self) -> None:
        """What a killed casd has left mounted would look like files of the store."""
        for point in left_mounts(self.layout.store, Path("/proc/self/mountinfo").read_text(encoding="utf-8")):
            command = [self.layout.program("fusermount3"), "-u", "-z", point]
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)

    def _end(self) -> None:
        if self.told.phase != "failed":
            self._tell(phase="stopping")
        for group in ([each.name for each in self.workers], *([each.name] for each in reversed(self.services))):
            present = [name for name in group if name in self.running]
            for name in present:
                self._signal(self.running[name], signal.SIGTERM)
            for name in present:
                deadline = STOP_SECONDS_MAX.get(name, STOP_SECONDS)
                _ended(self.running[name], deadline)
                self._kill_group(self.running[name])
        self._unmount()

    def _signal(self, process: subprocess.Popen[bytes], number: int) -> None:
        if process.poll() is None:
            process.send_signal(number)

    def _kill_group(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ended(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits for the end of a process, and no longer than that."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
