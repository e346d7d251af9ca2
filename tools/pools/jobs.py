"""The queue of a running cluster, as its database has it: who works, what ran where, and what nobody will ever take.

BuildGrid refuses a pool that it was not told of, but lets an action for one whose worker is gone wait without end, and
Bazel with it. Its own limit on waiting counts what merely waits for a busy card as well. So the supervisor looks, and
ends what waits for nobody, in BuildGrid's own way: with an answer in the store, and a word to who listens.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.pools.services import Layout

FAILED_PRECONDITION = 9
"""Of gRPC: to ask again would not help, and Bazel does not."""

QUEUED, EXECUTING, COMPLETED = 2, 3, 4
"""Stages of an action, in the words of the protocol."""

PRESENT = "bots.expiry_time > now() at time zone 'utc'"


def ask(layout: Layout, query: str) -> list[Any] | None:
    """Rows of a query as dictionaries; None if the database does not answer."""
    whole = f"select coalesce(json_agg(row_to_json(r)), '[]') from ({query}) r"
    done = _psql(layout, whole)
    return None if done is None else list(json.loads(done))


def _psql(layout: Layout, text: str) -> str | None:
    client = [layout.postgres("psql"), "-h", str(layout.sockets), "-U", "plumbline", "-d", "plumbline"]
    done = subprocess.run([*client, "-XAtqc", text], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout


def registered(layout: Layout) -> dict[str, int]:
    """Worker -> number of its actions, as the scheduler knows them."""
    busy = f"(select count(*) from jobs where worker_name = bot_id and stage = {EXECUTING} and not cancelled)"
    rows = ask(layout, f"select bot_id, {busy} as busy from bots where {PRESENT}")
    return {row["bot_id"]: row["busy"] for row in rows or ()}


def pools_in_queue(layout: Layout) -> dict[str, list[str]]:
    """Pool -> names of the actions that wait in it."""
    rows = ask(
        layout, f"select property_label as pool, json_agg(name) as names from jobs where stage = {QUEUED} group by 1"
    )
    return {row["pool"]: row["names"] for row in rows or ()}


def pools_with_workers(layout: Layout) -> set[str] | None:
    """The pools that have a worker now; None if the database does not answer."""
    query = (
        f"select distinct property_label as pool from property_labels join bots on bots.name = bot_name where {PRESENT}"
    )
    rows = ask(layout, query)
    return None if rows is None else {row["pool"] for row in rows}


def given_up(layout: Layout, tries_max: int) -> list[str]:
    """Names of the actions that so many workers have handed back unfinished, and that are tried once more."""
    rows = ask(
        layout,
        f"select name from jobs where stage in ({QUEUED}, {EXECUTING}) and n_tries > {tries_max} and not cancelled",
    )
    return [row["name"] for row in rows or ()]


def refuse(layout: Layout, names: Iterable[str], why: str) -> None:
    """Ends actions that wait, or are tried in vain, with an answer that says why."""
    answer = response(FAILED_PRECONDITION, why)
    digest = hashlib.sha256(answer).hexdigest()
    put(layout.store, digest, answer)
    for name in names:
        # Names are the scheduler's own, UUIDs.
        _psql(
            layout,
            # What a worker has is its until it lets go of it: it would have no room for another.
            f"update jobs set stage = case stage when {QUEUED} then {COMPLETED} else stage end, "
            f"cancelled = (stage = {EXECUTING}), status_code = {FAILED_PRECONDITION}, "
            f"result = '{digest}/{len(answer)}' where name = '{name}' and stage < {COMPLETED}; "
            f"notify job_updated, '{name}'",
        )


def response(code: int, message: str) -> bytes:
    """The bytes of the protocol's ExecuteResponse that holds nothing but a status."""
    text = message.encode()
    status = b"\x08" + _varint(code) + b"\x12" + _varint(len(text)) + text
    return b"\x1a" + _varint(len(status)) + status


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def put(store: Path, digest: str, content: bytes) -> None:
    """Puts an object into casd's store, whole or not at all."""
    file = store / "cas/objects" / digest[:2] / digest[2:]
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f"{file.name}.plumbline")
    scratch.write_bytes(content)
    scratch.rename(file)


@dataclass(frozen=True)
class Ran:
    """An action that a worker was given."""

    target: str
    """Its label; empty if whoever sent it did not say."""
    mnemonic: str
    worker: str
    tries: int

    @property
    def is_test(self) -> bool:
        """Whether it is what a test target runs, and not what builds it."""
        return self.mnemonic == "TestRunner"


def ran(layout: Layout) -> list[Ran] | None:
    """Every action that came to a worker since the cluster was started; None if the database does not answer."""
    rows = ask(
        layout,
        "select distinct jobs.name, target_id, action_mnemonic, worker_name, n_tries from jobs "
        "join operations on operations.job_name = jobs.name "
        "left join request_metadata on request_metadata.id = request_metadata_id "
        "where worker_name is not null order by target_id, action_mnemonic, jobs.name",
    )
    if rows is None:
        return None
    return [
        Ran(row["target_id"] or "", row["action_mnemonic"] or "", row["worker_name"], row["n_tries"]) for row in rows
    ]
