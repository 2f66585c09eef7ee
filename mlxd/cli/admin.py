"""The admin side of a running daemon, over its unix socket. Standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from mlxd.cli.client import NoAnswer

_TIMEOUT = 60.0
"""A reload waits for a file that is being written, and for a port."""


class Refused(Exception):
    """The daemon answered that it will not; `status` is the answer's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class AdminClient:
    """Asks the daemon that serves the socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def get(self, target: str, **query: str) -> dict[str, Any]:
        """Raises NoAnswer, Refused."""
        return self._ask("GET", target, query, None, {})

    def post(
        self, target: str, body: object = None, *, etag: str = "", **query: str
    ) -> dict[str, Any]:
        """Raises NoAnswer, Refused."""
        headers = {"If-Match": etag.encode("ascii", "replace").decode()} if etag else {}
        return self._ask("POST", target, query, body, headers)

    def _ask(
        self,
        method: str,
        target: str,
        query: Mapping[str, str],
        body: object,
        headers: Mapping[str, str],
    ) -> dict[str, Any]:
        connection = _UnixConnection(self._path)
        sent = json.dumps(body) if body is not None else None
        url = f"{target}?{urlencode(query, errors='replace')}" if query else target
        kind = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, url, sent, {**kind, **headers})
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(f"no answer from the daemon at {self._path}: {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise Refused(response.status, str(answer.get("error", answer)))
        found: dict[str, Any] = answer
        return found


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
