"""Requests that may be read in two ways (tests/data/smuggling.toml), and what comes of them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.daemon import Daemon

FILE = Path(__file__).parents[1] / "data" / "smuggling.toml"
FOLLOWS = (
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: follows\r\n\r\n"
)
"""The request of its own behind each case."""
_PATIENCE_SECONDS = 0.4
"""For the first answer: some cases are no whole request, and get one only by what follows."""
_END_SECONDS = 20.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d+)[^\r\n]*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ASKED_BY_OTHERS = ("/livez", "/readyz")
"""By what follows a case, the daemon's own watchdog, and a proxy that looks after it."""
_ASKED = re.compile(r"([A-Z-]+) (\S*) \d+")
_NO_REQUEST = ("an unreadable request ", "a connection ")
"""How lines begin that tell of what was refused before there was one."""

Asked = tuple[str, str]
"""A method and a path."""


@dataclass(frozen=True)
class Case:
    name: str
    sent: bytes
    answers: list[int]
    seen: list[Asked]


@dataclass(frozen=True)
class Answer:
    status: int
    head: bytes
    body: bytes

    @property
    def id(self) -> str:
        """Of the request that it is of, as that was given."""
        found = re.search(rb"\r\nx-request-id: ([^\r\n]*)", self.head, re.IGNORECASE)
        return found[1].decode() if found else ""


def cases() -> list[Case]:
    return [_case(**row) for row in tomllib.loads(FILE.read_text())["case"]]


def _case(name: str, sent: str, answers: list[int], seen: list[str], fill: int = 0) -> Case:
    text = sent.replace("…", "x" * fill)
    asked = [(method, path) for method, _, path in (one.partition(" ") for one in seen)]
    return Case(name, text.encode("latin-1"), answers, asked)


def send(port: int, sent: bytes, patience: float = _END_SECONDS) -> bytes:
    """What comes back on a connection, and to the request that follows on it."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS) as sock:
        with contextlib.suppress(TimeoutError):
            sock.sendall(sent)
            received = sock.recv(65536)
        sock.settimeout(patience)
        with contextlib.suppress(OSError):
            sock.sendall(FOLLOWS)
            while piece := sock.recv(65536):
                received += piece
    return received


def answers_in(received: bytes) -> list[Answer]:
    """All of them; what is none fails."""
    found: list[Answer] = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        status = _STATUS.match(head + b"\r\n")
        assert status is not None, received
        assert end, received
        length = _LENGTH.search(head)
        bodiless = rest.startswith(b"HTTP/1.")  # of a HEAD
        size = int(length[1]) if length and not bodiless else 0
        found.append(Answer(int(status[1]), head, rest[:size]))
        received = rest[size:]
    return found


class Log:
    """What a daemon has had, since somebody last looked."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._at = len(daemon.log_text())

    def asked(self, until: str) -> list[Asked] | None:
        """Up to the request of that id, without what others ask; None: it is not there yet."""
        found: list[Asked] = []
        at = self._at
        for line in self._daemon.log_text()[at:].splitlines(keepends=True):
            at += len(line)
            record: dict[str, Any] = json.loads(line)
            if record["logger"] != "mlxd.access":
                continue
            if record.get("request") == until:
                self._at = at
                return found
            if record["message"].startswith(_NO_REQUEST):
                continue
            asked = _ASKED.fullmatch(record["message"])
            assert asked is not None, line
            if asked[2] not in _ASKED_BY_OTHERS:
                found.append((asked[1], asked[2]))
        return None


def lines_of(file: Path, until: str) -> Callable[[], list[Asked] | None]:
    """What a proxy says that it has passed on, by lines `METHOD TARGET ID SERVER`, up to that of an
    id, without it; SERVER is `-` where it was nobody.
    """
    at = file.stat().st_size if file.exists() else 0

    def look() -> list[Asked] | None:
        found: list[Asked] = []
        with file.open("rb") as lines:
            lines.seek(at)
            said = lines.read().decode("latin-1").split("\n")[:-1]
        for line in said:
            parts = line.split(" ")
            if len(parts) < 5 or parts[0] != "asked":
                continue
            if parts[-2] == until:
                return found
            path = _path(" ".join(parts[2:-2]))
            if parts[-1] not in ("-", "<NOSRV>") and path not in _ASKED_BY_OTHERS:
                found.append((parts[1], path))
        return None

    return look


def _path(target: str) -> str:
    """As a daemon's log has it."""
    parts = urlsplit(target) if "://" in target else None
    path = parts.path if parts is not None else target.partition("?")[0].partition("#")[0]
    return unquote(path)


def too_many(seen: list[Asked], sent: list[Asked]) -> list[Asked]:
    """What somebody has had that nobody has sent."""
    return list((Counter(seen) - Counter(sent)).elements())


Change = Callable[[str], str]
"""Of a proxy's file."""


def haproxy_says(_folder: Path) -> Change:
    """Also what it passes on."""

    def change(text: str) -> str:
        front = (
            "frontend llm\n"
            "    declare capture request len 100\n"
            "    http-request capture req.hdr(X-Request-Id) id 0\n"
            '    log-format "asked %HM %HU %[capture.req.hdr(0)] %s"\n'
        )
        text = text.replace("log /dev/log local0", "log stdout format raw local0")
        return text.replace("frontend llm\n", front).replace("    option httplog\n", "")

    return change


def haproxy_reuses(folder: Path) -> Change:
    """Likewise, and connections to one daemon serve whoever comes."""

    def change(text: str) -> str:
        lines = haproxy_says(folder)(text).splitlines(keepends=True)
        one = "".join(line for line in lines if not line.startswith("    server t"))
        return one.replace("    option http-server-close\n", "    http-reuse always\n")

    return change


def nginx_says(folder: Path) -> Change:
    def change(text: str) -> str:
        around = (
            'map $http_x_request_id $said_id { "" "-"; default $http_x_request_id; }\n'
            'map $upstream_addr $said_to { "" "-"; default "mlxd"; }\n'
            "log_format asked 'asked $request_method $request_uri $said_id $said_to';\n"
        )
        inside = f"access_log {folder}/asked.log asked;\n    location / {{"
        return around + text.replace("location / {", inside)

    return change


def nginx_reuses(folder: Path) -> Change:
    def change(text: str) -> str:
        text = nginx_says(folder)(text).replace("zone mlxd 64k;", "zone mlxd 64k; keepalive 1;")
        return text.replace("gzip off;", 'gzip off; proxy_set_header Connection "";')

    return change
