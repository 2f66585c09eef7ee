"""A running daemon, seen from outside: where it is, and what it answers. Standard library only, and
little of it: `status` is looked at all the time, and `http.client` takes longer to import than the
daemon to answer.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from typing import Any

from mlxd import __version__
from mlxd.core import durable
from mlxd.core.instance import (
    authority,
    is_claimed,
    pid_of,
    reachable,
    running,
    untold,
)
from mlxd.core.places import BadAddress, Places

DEFAULT_PORT = 11435
HEALTH_SECONDS = 5.0
_HOST = re.compile(r"[\w.:%-]+", re.ASCII)
MOST_BYTES = 16 << 20
"""Of an answer: many times what a daemon says of itself."""
_MOST_POLICY_BYTES = 256 << 10


class NoAnswer(Exception):
    """Nothing that is mlxd answers there."""


class OtherVersion(NoAnswer):
    """The daemon does not say what a command of its own version would be told."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: it is of another version than this command, which is of mlxd {__version__};"
            " restart the daemon, or use the command that came with it"
        )


class _Answer(dict[str, Any]):
    """An object of a daemon's answer. Raises OtherVersion for what is not in it."""

    def __missing__(self, key: str) -> Any:
        raise OtherVersion(f"the daemon's answer has no {key!r}")


def decoded(answer: bytes) -> Any:
    """The JSON of a daemon's answer. Raises ValueError."""
    return json.loads(answer, object_hook=_Answer)


def address_of(found: Places) -> tuple[str, int]:
    """Where the daemon is: by the state folder, then MLX_API_URL, then the port variables. Raises
    BadAddress.
    """
    daemon = running(found.state.path)
    if daemon is not None:
        return reachable(daemon.host), daemon.port
    if text := _text(found, "MLX_API_URL"):
        return _address_in(text)
    port = _text(found, "MLXD_PORT") or _text(found, "MLX_API_PORT") or _policy_port(found)
    return "127.0.0.1", int(port) if port.isdigit() else DEFAULT_PORT


def _address_in(text: str) -> tuple[str, int]:
    """Of a URL. A host is of letters that mean nothing to a shell: `mlxd env` prints it for one.
    Raises BadAddress.
    """
    from urllib.parse import urlsplit

    with contextlib.suppress(ValueError):
        url = urlsplit(text)
        if url.hostname and _HOST.fullmatch(url.hostname):
            return url.hostname, url.port or DEFAULT_PORT
    raise BadAddress(f"mlxd: MLX_API_URL is {text[:80]!r}, where http://HOST:PORT was expected")


def health_of(found: Places) -> dict[str, Any]:
    """What the daemon says of itself: by the admin socket, where it tells all of it to whoever has
    no API key, or else over TCP. Raises NoAnswer.
    """
    daemon = running(found.state.path)
    if daemon is not None and daemon.admin:
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(HEALTH_SECONDS)
            sock.connect(daemon.admin)
            status, health = _asked(sock, "localhost", "/admin/health")
            if status < 400 and isinstance(health, dict):
                return health
    return get_json(address_of(found), "/health")


def silence(found: Places, error: NoAnswer) -> tuple[str, str]:
    """Why `health_of` found nobody, for programs and for people: none runs (`down`), or one does,
    as its state folder says (`silent`), or that may not be known (`unknown`).
    """
    if why := untold(found.state.path):
        return "unknown", f"mlxd may not be running: {error}; {why}"
    if is_claimed(found.state.path):
        pid = pid_of(found.state.path) or "unknown"
        return "silent", f"mlxd (pid {pid}) runs and does not answer: {error}"
    return "down", f"mlxd is not running: {error}"


def get_json(
    address: tuple[str, int], path: str, timeout: float = HEALTH_SECONDS
) -> dict[str, Any]:
    """Whatever the status. Raises NoAnswer."""
    where = authority(*address)
    try:
        with socket.create_connection(address, timeout) as sock:
            _, body = _asked(sock, where, path)
    except (OSError, ValueError) as error:
        raise NoAnswer(f"no answer from http://{where}{path}: {error}") from error
    if not isinstance(body, dict):
        raise NoAnswer(f"what answers at http://{where} is not mlxd")
    return body


def _asked(sock: socket.socket, host: str, path: str) -> tuple[int, Any]:
    """Status and JSON of an answer that says how long it is, or ends with its connection. Raises
    OSError, ValueError.
    """
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = _received(sock).partition(b"\r\n\r\n")
    status = head.partition(b" ")[2][:3]
    if not head.startswith(b"HTTP/1.") or not status.isdigit():
        raise ValueError("that is no HTTP")
    return int(status), decoded(body)


def _received(sock: socket.socket) -> bytes:
    """All of it; whatever holds the port may speak for ever."""
    until = time.monotonic() + (sock.gettimeout() or HEALTH_SECONDS)
    answer = bytearray()
    while data := sock.recv(1 << 16):
        answer += data
        if len(answer) > MOST_BYTES or time.monotonic() > until:
            raise ValueError("it does not come to an end")
    return bytes(answer)


def _text(found: Places, name: str) -> str:
    setting = found.settings.get(name)
    return setting.text if setting is not None else ""


def _policy_port(found: Places) -> str:
    """The port that server.yaml names, without judging the rest of it."""
    if found.policies is None:
        return ""
    try:
        content = durable.read(found.policies.path / "server.yaml", _MOST_POLICY_BYTES)
    except (OSError, ValueError):
        return ""
    from mlxd.policy import strict_yaml

    data = strict_yaml.parse(content).data
    listen = (data or {}).get("listen")
    return str(listen.get("port", "")) if isinstance(listen, dict) else ""
