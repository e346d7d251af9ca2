"""The door for other machines: TLS and a token, without which nothing is answered. Loopback has a plain one.

    writer    may do everything: run actions, and write what others will believe
    reader    may read stored objects and results, for changes of strangers: what they run must not become a result

Whoever comes with neither is told 401, and a reader who wants more 403. Tokens and a certificate are made at the first
start and stay; `writer.bazelrc` and `reader.bazelrc` beside them are what a client's user.bazelrc imports.
"""

import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

ROLES = ("writer", "reader")
API = "build.bazel.remote.execution.v2"
STORED = ("google.bytestream.ByteStream", f"{API}.ContentAddressableStorage", f"{API}.ActionCache")
"""Services of the store; all others are the scheduler's."""

READS = (
    f"{API}.Capabilities/GetCapabilities",
    "google.bytestream.ByteStream/Read",
    f"{API}.ContentAddressableStorage/BatchReadBlobs",
    f"{API}.ContentAddressableStorage/FindMissingBlobs",
    f"{API}.ContentAddressableStorage/GetTree",
    f"{API}.ActionCache/GetActionResult",
)
"""What a reader may call; whatever a later version adds is the writer's."""

DAYS = 825
ANY = ("0.0.0.0", "::")


class DoorError(Exception):
    """Why the door cannot be opened, with a hint."""


def host(address: str) -> str:
    """What a client calls the machine."""
    return socket.gethostname() if address in ANY else address


def make_keys(keys: Path, address: str, port: int, certificate: Path | None, scheme: str) -> None:
    """Writes what the door and its clients need, as far as it is not there yet.

    Args:
        keys: the directory of them, for its owner alone.
        address: where the door is.
        port: likewise.
        certificate: a directory with tls.crt and tls.key to use; else one is made for the address.
        scheme: grpcs of a cluster, https of a cache.

    Raises:
        DoorError: there is no certificate.
    """
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    if certificate:
        for name in ("tls.crt", "tls.key"):
            if not (certificate / name).is_file():
                raise DoorError(f"--certificate: no {name} in {certificate}. hint: leave it out, and one is made")
            shutil.copyfile(certificate / name, keys / name, follow_symlinks=True)
    elif not (keys / f"made-for-{address}").exists():
        _make_certificate(keys, address)
    (keys / "tls.key").chmod(0o600)
    tokens = {role: _token(keys / f"{role}.token") for role in ROLES}
    _write(keys / "tokens.conf", "".join(f'"Bearer {token}" {role};\n' for role, token in tokens.items()))
    for role, token in tokens.items():
        _write(keys / f"{role}.bazelrc", client_rc(role, token, keys / "tls.crt", f"{scheme}://{host(address)}:{port}"))


def _make_certificate(keys: Path, address: str) -> None:
    if not shutil.which("openssl"):
        raise DoorError(
            "--listen: no openssl to make a certificate with. hint: --certificate DIR with tls.crt and tls.key"
        )
    is_number = all(part.isdecimal() for part in host(address).split("."))
    name = f"subjectAltName={'IP' if is_number else 'DNS'}:{host(address)}"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    command += ["-days", str(DAYS), "-subj", "/CN=plumbline", "-addext", name]
    command += ["-keyout", str(keys / "tls.key"), "-out", str(keys / "tls.crt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DoorError(f"--listen: {address}: openssl makes no certificate: {done.stderr.strip().splitlines()[-1]}")
    for old in keys.glob("made-for-*"):
        old.unlink()
    (keys / f"made-for-{address}").touch()


def _token(file: Path) -> str:
    if not file.exists():
        _write(file, secrets.token_urlsafe(32) + "\n")
    return file.read_text(encoding="utf-8").strip()


def _write(file: Path, text: str) -> None:
    """Writes a file that its owner alone may read, from the first byte on."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(text)


def client_rc(role: str, token: str, certificate: Path, address: str) -> str:
    """What a client imports: the farm for a writer, if it is one; else its results alone."""
    executes = role == "writer" and address.startswith("grpcs:")
    config, option = ("remote", "remote_executor") if executes else ("cache", "remote_cache")
    lines = [f"--{option}={address}", f"--tls_certificate={certificate}"]
    lines.append(f'"--remote_header=Authorization=Bearer {token}"')
    if role == "reader":
        lines.append("--noremote_upload_local_results")
    return "".join(f"build:{config} {line}\n" for line in lines)


def roles(keys: Path) -> str:
    """The part of nginx's configuration that says who someone is, for all servers."""
    return f"""\
  map_hash_bucket_size 256;
  map $http_authorization $role {{
    default nobody;
    include {keys}/tokens.conf;
  }}"""


def server(address: str, port: int, keys: Path) -> str:
    """The server of the door, beside the plain one of loopback."""
    reads = "\n".join(
        f"    location = /{method} {{\n"
        f"      if ($role = nobody) {{ return 401; }}\n"
        f"      grpc_pass grpc://{'store' if method.startswith(STORED) else 'scheduler'};\n"
        f"    }}"
        for method in READS
    )
    rest = "\n".join(
        f"    location /{f'{service}/' if service else ''} {{\n"
        f"      if ($role = nobody) {{ return 401; }}\n"
        f"      if ($role != writer) {{ return 403; }}\n"
        f"      grpc_pass grpc://{'store' if service else 'scheduler'};\n"
        f"    }}"
        for service in (*STORED, "")
    )
    return f"""\
  server {{
    listen {address}:{port} ssl;
    http2 on;
    http2_max_concurrent_streams 128;
    keepalive_requests 1000000;
    ssl_certificate {keys}/tls.crt;
    ssl_certificate_key {keys}/tls.key;
    ssl_protocols TLSv1.2 TLSv1.3;
{reads}
{rest}
  }}"""


def http_roles() -> str:
    """Who may do what with objects by HTTP."""
    allowed = [("writer", "GET"), ("writer", "HEAD"), ("writer", "PUT"), ("reader", "GET"), ("reader", "HEAD")]
    lines = "".join(f'    "{role} {method}" 0;\n' for role, method in allowed)
    return f"""\
  map "$role $request_method" $refused {{
    default 1;
{lines}  }}"""


def http_server(listen: str, store: Path, keys: Path | None) -> str:
    """A server of objects by HTTP, as Bazel asks for them; with keys it has TLS and asks who someone is."""
    secured = ["listen {} ssl;", f"ssl_certificate {keys}/tls.crt;", f"ssl_certificate_key {keys}/tls.key;"]
    secured.append("ssl_protocols TLSv1.2 TLSv1.3;")
    asks = ["if ($role = nobody) { return 401; }", "if ($refused) { return 403; }"] if keys else []
    head = "\n".join(f"    {line}".replace("{}", listen) for line in (secured if keys else ["listen {};"]))
    body = "\n".join(f"      {line}" for line in asks)
    return f"""\
  server {{
{head}
    root {store};
    location ~ "^/(ac|cas)/[0-9a-f]{{64}}$" {{
{body}
      dav_methods PUT;
      create_full_put_path on;
    }}
    location / {{ return 403; }}
  }}"""
