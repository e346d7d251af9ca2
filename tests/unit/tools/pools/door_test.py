"""Beyond loopback there is TLS and a token or nothing, and a reader's token opens what reads alone."""

import os
import re
from pathlib import Path

import pytest

from tools.pools import cluster
from tools.pools.door import READS, STORED, DoorError, make_keys, server
from tools.pools.services import Layout, http_cache_conf, nginx_conf
from tools.pools.store import make_room


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """As a person has it from an authority."""
    (tmp_path / "certificate").mkdir()
    for name in ("tls.crt", "tls.key"):
        (tmp_path / "certificate" / name).write_text(name)
    return tmp_path / "certificate"


def layout(tmp_path: Path, listen: str) -> Layout:
    return Layout(tmp_path / "engine", tmp_path / "state", 50999, 20, listen)


def locations(text: str) -> dict[str, str]:
    """What nginx does for each place."""
    return {
        place: " ".join(body.split()) for place, body in re.findall(r"location (\S.*?) \{\n(.*?)\n    \}", text, re.S)
    }


def test_without_an_address_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    text = nginx_conf(layout(tmp_path, ""), "")
    assert re.findall(r"listen (.*);", text) == ["127.0.0.1:50999"]
    assert "$role" not in text
    assert cluster.parse(["up"]).listen == ""


def test_with_an_address_it_has_tls_and_loopback_stays_as_it_was(tmp_path: Path) -> None:
    plain, text = (nginx_conf(layout(tmp_path, listen), "") for listen in ("", "10.0.0.5"))
    assert re.findall(r"listen (.*);", text) == ["127.0.0.1:50999", "10.0.0.5:50999 ssl"]
    (inside,) = re.findall(r"  server \{\n    listen 127.*?\n  \}\n", plain, re.S)
    assert inside in text
    assert f"ssl_certificate_key {tmp_path}/state/keys/tls.key;" in text
    assert f"include {tmp_path}/state/keys/tokens.conf;" in text
    assert "default nobody;" in text


def test_every_place_of_the_door_asks_who_it_is_and_all_but_reading_is_a_writers() -> None:
    found = locations(server("10.0.0.5", 1, Path("/keys")))
    assert found.keys() == {f"= /{method}" for method in READS} | {f"/{each}/" for each in STORED} | {"/"}
    for place, body in found.items():
        steps = body.split("grpc_pass")[0]
        nobody, no_writer = "if ($role = nobody) { return 401; }", "if ($role != writer) { return 403; }"
        assert steps.split() == (nobody if place.startswith("= ") else f"{nobody} {no_writer}").split()
    # What writes, runs, or takes an action away from a worker.
    for method in (
        "ByteStream/Write",
        "Storage/BatchUpdateBlobs",
        "Cache/UpdateActionResult",
        "Execution/Execute",
        "Bots/",
    ):
        assert not [read for read in READS if read.endswith(method) or method in read]


def test_tokens_are_two_that_stay_and_that_only_the_owner_reads(tmp_path: Path, certificate: Path) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, "10.0.0.5", 50999, certificate, "grpcs")
    first = {file.name: file.read_text() for file in keys.iterdir()}
    make_keys(keys, "10.0.0.5", 50999, certificate, "grpcs")
    assert {file.name: file.read_text() for file in keys.iterdir()} == first
    assert keys.stat().st_mode & 0o777 == 0o700
    secret = [file for file in keys.iterdir() if file.name != "tls.crt"]
    assert {file.stat().st_mode & 0o777 for file in secret} == {0o600}
    writer, reader = (first[f"{role}.token"].strip() for role in ("writer", "reader"))
    assert writer != reader
    assert min(len(writer), len(reader)) >= 43, "256 bits"
    assert first["tokens.conf"] == f'"Bearer {writer}" writer;\n"Bearer {reader}" reader;\n'


def test_a_client_of_either_kind_has_a_file_to_import(tmp_path: Path, certificate: Path) -> None:
    keys = tmp_path / "keys"
    make_keys(keys, "10.0.0.5", 50999, certificate, "grpcs")
    writer, reader = ((keys / f"{role}.bazelrc").read_text().splitlines() for role in ("writer", "reader"))
    assert writer[:2] == [
        "build:remote --remote_executor=grpcs://10.0.0.5:50999",
        f"build:remote --tls_certificate={keys}/tls.crt",
    ]
    assert "build:cache --remote_cache=grpcs://10.0.0.5:50999" in reader
    assert "build:cache --noremote_upload_local_results" in reader
    assert not [line for line in reader if "executor" in line]


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_a_certificate_that_is_not_there_opens_no_door(tmp_path: Path, certificate: Path, name: str) -> None:
    (certificate / name).unlink()
    with pytest.raises(DoorError, match=rf"^--certificate: no {name} in .* hint: leave it out, and one is made$"):
        make_keys(tmp_path / "keys", "10.0.0.5", 50999, certificate, "grpcs")


def test_neither_a_certificate_nor_openssl_opens_no_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DoorError, match=r"^--listen: no openssl .* hint: --certificate DIR with tls.crt and tls.key$"):
        make_keys(tmp_path / "keys", "10.0.0.5", 50999, None, "grpcs")


def test_a_cache_by_http_is_plain_on_loopback_and_nowhere_else(tmp_path: Path) -> None:
    text = http_cache_conf(layout(tmp_path, "10.0.0.5"), "")
    assert re.findall(r"listen (.*);", text) == ["127.0.0.1:50999", "10.0.0.5:50999 ssl"]
    inside, door = (part for part in text.split("  server {\n")[1:])
    assert "$role" not in inside
    assert "if ($role = nobody) { return 401; }" in door
    assert "if ($refused) { return 403; }" in door
    allowed = re.findall(r'"(\w+) (\w+)" 0;', text)
    assert [method for role, method in allowed if role == "reader"] == ["GET", "HEAD"]
    assert re.findall(r"listen (.*);", http_cache_conf(layout(tmp_path, ""), "")) == ["127.0.0.1:50999"]


@pytest.mark.parametrize(("path", "stored"), [("ac", True), ("cas", True), ("keys", False), ("ac/..", False)])
def test_a_cache_by_http_has_digests_and_nothing_else(tmp_path: Path, path: str, stored: bool) -> None:
    (pattern,) = re.findall(r'location ~ "(.*)" \{', http_cache_conf(layout(tmp_path, ""), ""))
    assert bool(re.search(pattern, f"/{path}/{'0a' * 32}")) == stored
    assert not re.search(pattern, f"/{path}/{'0a' * 31}")


def test_what_was_asked_for_least_lately_makes_room_until_a_quarter_is_free(tmp_path: Path) -> None:
    for number in range(10):
        file = tmp_path / ("ac" if number % 2 else "cas") / str(number)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * 10)
        # Written in one order, and asked for in another.
        os.utime(file, (1000 - number, number))
    make_room(tmp_path, 100)
    assert len(list(tmp_path.glob("*/*"))) == 10, "it is as large as it may be"
    make_room(tmp_path, 99)
    assert sorted(file.name for file in tmp_path.glob("*/*")) == [str(number) for number in range(7)]
