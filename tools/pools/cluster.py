"""A real remote-execution cluster on this machine, with a pool for each row of the table of accelerators.

    ./bazelw run //tools/pools:up        starts it, or says that it runs; `-- --help` lists what can be chosen
    ./bazelw run //tools/pools:status    workers of each pool
    ./bazelw run //tools/pools:check     every stored object against its digest
    ./bazelw run //tools/pools:down      stops it; what is stored stays
    ./bazelw run //tools/pools:cache     a cache by HTTP alone, for machines that run their actions themselves

Where this machine has the cards of a pool, its worker hands them in. Elsewhere the pool is simulated: it proves that a
test goes where it should, not that it runs there. A test for cards says itself that they are missing, and fails as
infrastructure.
"""

import argparse
import getpass
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tools.bazel.starlark import starlark
from tools.devices import lease
from tools.devices.detect import by_accelerator, devices
from tools.pools import store, supervisor
from tools.pools.door import DoorError, make_keys
from tools.pools.engine import EngineError, cache, engine, interpreter, say
from tools.pools.jobs import registered
from tools.pools.services import (
    Layout,
    Worker,
    described,
    nginx,
    services,
    system_mounts,
    worker_service,
    workers,
    write_configurations,
)
from tools.pools.table import TABLE

UNAVAILABLE = 69
PORT = 50153
HTTP_PORT = 8080
"""Which .bazelrc names."""

UP_SECONDS_MAX = 180


def workspace() -> Path:
    """The checkout that `bazel run` names."""
    return Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))


def fail(text: str) -> int:
    """Says what is wrong; returns the exit code."""
    print(f"pools: {text}", file=sys.stderr, flush=True)
    return UNAVAILABLE


def up(arguments: argparse.Namespace) -> int:
    """Starts the cluster in the background, and waits until it can be used."""
    names = starlark((workspace() / TABLE).read_text(encoding="utf-8"))
    cards = by_accelerator(devices())
    try:
        rows = workers(names, arguments.pools, arguments.cpus, cards=cards, each=arguments.workers)
    except ValueError as error:
        return fail(str(error))
    # An action cannot write where they are.
    lease.prepare([card for own in cards.values() for card in own])
    return _start(arguments, rows)


def http_cache(arguments: argparse.Namespace) -> int:
    """Starts a cache by HTTP in the background, after what was asked for least lately has made room."""
    return _start(arguments, [])


def _start(arguments: argparse.Namespace, rows: list[Worker]) -> int:
    state: Path = arguments.state
    try:
        programs = engine(workspace() / "tools/pools/requirements_lock.txt")
        layout = Layout(programs, state, arguments.port, arguments.store_gib, arguments.listen)
    except EngineError as error:
        return fail(str(error))
    if layout.problem:
        return fail(layout.problem)
    state.mkdir(parents=True, exist_ok=True)
    held = supervisor.lock(state)
    if held is None:
        say("it runs already")
        return status(arguments)
    if supervisor.answers(layout.port):
        return fail(
            f"--port: something listens on 127.0.0.1:{layout.port}. "
            "hint: another port, and the same one in --remote_executor or --remote_cache"
        )
    started = time.monotonic()
    for name in ("run", "logs", "tmp", "queue"):
        shutil.rmtree(state / name, ignore_errors=True)
    for name in ("run", "logs", "tmp", "store"):
        (state / name).mkdir(mode=0o700, exist_ok=True)
    (state / "supervisor.json").unlink(missing_ok=True)
    if layout.listen:
        try:
            make_keys(layout.keys, layout.listen, layout.port, arguments.certificate, "grpcs" if rows else "https")
        except DoorError as error:
            return fail(str(error))
    write_configurations(layout, rows, getpass.getuser() if os.geteuid() == 0 else "")
    if rows:
        mounts = system_mounts(Path("/"), interpreter().parent.parent)
        processes = [worker_service(layout, row, mounts) for row in rows]
        pools = list(dict.fromkeys(row.pool for row in rows))
        kept = supervisor.Supervisor(layout, services(layout), processes, pools)
    else:
        store.make_room(layout.store, int(layout.store_gib * 2**30))
        kept = supervisor.Supervisor(layout, [nginx(layout)], [], [])
    _in_background(kept, state)
    os.close(held)
    return _await(state, layout, rows, started)


def _in_background(cluster: supervisor.Supervisor, state: Path) -> None:
    """Runs the supervisor in a process that outlives this one, and that has the lock."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    with (state / "logs/supervisor.log").open("ab") as log, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    cluster.told.pid = os.getpid()
    cluster.run()
    os._exit(0)


def _await(state: Path, layout: Layout, rows: list[Worker], started: float) -> int:
    said: set[str] = set()
    since = started
    while time.monotonic() - since < UP_SECONDS_MAX:
        told = supervisor.read(state)
        if told and told.phase == "checking":
            if "checking" not in said:
                say("looking whether every stored object is what it was")
                said.add("checking")
            # As long as the store is large.
            since = time.monotonic()
        for name in told.services if told else ():
            if name not in said and not name.startswith("worker-"):
                say(f"{name} starts")
                said.add(name)
        if told and told.phase == "failed":
            return fail(f"{told.error}\n  hint: all logs are in {state / 'logs'}")
        if told and told.phase == "up" and len(registered(layout)) == len(rows):
            say(f"up in {time.monotonic() - started:.1f} s")
            return _report(state)
        time.sleep(0.1)
    return fail(f"not up after {UP_SECONDS_MAX} s. hint: logs are in {state / 'logs'}; ./bazelw run //tools/pools:down")


def status(arguments: argparse.Namespace) -> int:
    """Prints the workers of each pool; fails if a pool has none."""
    return _report(arguments.state)


def _report(state: Path) -> int:
    running = state.is_dir() and supervisor.lock(state) is None
    told = supervisor.read(state) if running else None
    if told is None:
        return fail(f"no cluster runs in {state}. hint: ./bazelw run //tools/pools:up")
    layout, rows = described(state)
    found = registered(layout)
    minutes = (time.time() - told.started_at) / 60
    kind, address = ("cluster", layout.address) if rows else ("cache", f"http://127.0.0.1:{layout.port}")
    print(f"{kind:<9} {address}, {told.phase} for {minutes:.0f} min, in {state}")
    if layout.listen:
        door_address = layout.address_of_door("grpcs" if rows else "https")
        print(f"door      {door_address}, with TLS and a token; clients import a .bazelrc of {layout.keys}")
    if not rows:
        return 0
    print(f"{'pool':<16} {'workers':>7} {'slots':>6} {'busy':>5}")
    for pool in dict.fromkeys(row.pool for row in rows):
        own = [row for row in rows if row.pool == pool]
        present = [row for row in own if row.name in found]
        note = "  simulated: proves routing, no hardware" if own[0].simulated else f"  {own[0].hardware}".rstrip()
        slots, busy = sum(row.slots for row in present), sum(found[row.name] for row in present)
        print(f"{pool:<16} {len(present):>7} {slots:>6} {busy:>5}{note}")
    if told.num_damaged:
        print(f"removed   {told.num_damaged} damaged objects of the store; {state / 'logs/supervisor.log'} has them")
    restarted = {name: each["restarts"] for name, each in told.services.items() if each["restarts"]}
    for name, times in restarted.items():
        print(f"restarted {name}, {times} times; it may say why in {state / 'logs' / (name + '.log')}")
    if absent := [row.name for row in rows if row.name not in found]:
        log = state / "logs" / f"{absent[0]}.log"
        return fail(
            f"no {', '.join(absent)}; expected all of them. "
            f"hint: one that was killed is back in half a minute, else {log} says why not"
        )
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Compares every object with its digest: a worker believes the store, and would run a test on damaged files."""
    started = time.monotonic()
    found = store.check(arguments.state / "store", remove=arguments.remove)
    for file in found.damaged:
        print(f"{file}: its bytes have another digest" + (", removed" if arguments.remove else ""))
    seconds, num_damaged = time.monotonic() - started, len(found.damaged)
    say(f"{found.num_objects} objects, {found.num_bytes / 2**30:.2f} GiB, {num_damaged} damaged ({seconds:.1f} s)")
    if found.damaged and not arguments.remove:
        return fail("damaged objects. hint: `-- --remove`, and Bazel makes them again")
    return 0


def down(arguments: argparse.Namespace) -> int:
    """Stops the cluster, and with it everything that its workers run."""
    state: Path = arguments.state
    if not state.is_dir() or (held := supervisor.lock(state)) is not None:
        if state.is_dir() and held is not None:
            os.close(held)
        say(f"no cluster runs in {state}")
        return 0
    told = supervisor.read(state)
    if told is None:
        return fail(f"{state}: a cluster that is only just starting. hint: again in a second")
    started = time.monotonic()
    os.kill(told.pid, signal.SIGTERM)
    while (held := supervisor.lock(state)) is None:
        if time.monotonic() - started > 60:
            return fail(f"process {told.pid} is still there after a minute. hint: {state / 'logs/supervisor.log'}")
        time.sleep(0.1)
    os.close(held)
    say(f"down in {time.monotonic() - started:.1f} s; what is stored stays in {state / 'store'}")
    return 0


COMMANDS = {"up": up, "status": status, "check": check, "down": down, "cache": http_cache}


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    is_cache = words[:1] == ["cache"]
    state, port = ("http-cache", HTTP_PORT) if is_cache else ("pools", PORT)
    parser.add_argument(
        "--state", type=Path, default=cache() / state, help="where everything is kept (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=port, help="on every address (default: %(default)s)")
    parser.add_argument(
        "--listen",
        default="",
        help="an address for other machines, with TLS and tokens (default: loopback alone, plain)",
    )
    parser.add_argument(
        "--certificate", type=Path, help="a directory with tls.crt and tls.key (default: one that is made for --listen)"
    )
    parser.add_argument("--pools", type=lambda text: text.split(","), default=[], help="names by commas (default: all)")
    parser.add_argument(
        "--cpus", type=int, default=os.cpu_count() or 1, help="actions of the cpu's at a time (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=1, help="of each pool (default: %(default)s)")
    parser.add_argument(
        "--store-gib", type=float, default=20, help="what is used least goes beyond it (default: %(default)s)"
    )
    parser.add_argument("--remove", action="store_true", help="check: remove what is damaged")
    arguments = parser.parse_args(words)
    arguments.state = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), arguments.state.expanduser()).resolve()
    return arguments


def main(words: list[str]) -> int:
    """Runs one of the commands."""
    arguments = parse(words)
    return COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
