"""The admin side of a running daemon, over its unix socket. Standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from mlxd.cli.client import NoAnswer, OtherVersion, decoded

_TIMEOUT = 60.0
"""A reload waits for a file that is being written, and for a port."""
_JSON = {"Content-Type": "application/json"}
_UNKNOWN = (404, 405)
"""For a path, or a method of it, that there is none of: in plain text, unlike any other refusal."""


class Refused(Exception):
    """The daemon answered that it will not; `status` is the answer's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class AdminClient:
    """Asks the daemon that serves the socket at `path`."""

    def __init__(self, path: str, timeout: float = _TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout

    @property
    def path(self) -> str:
        return self._path

    def get(self, target: str, **query: str) -> dict[str, Any]:
        """Raises NoAnswer, Refused."""
        return self._ask("GET", target, query, None, {}, timeout=self._timeout)

    def post(
        self, target: str, body: object = None, *, etag: str = "", **query: str
    ) -> dict[str, Any]:
        """Raises NoAnswer, Refused."""
        headers = {"If-Match": etag.encode("ascii", "replace").decode()} if etag else {}
        return self._ask("POST", target, query, body, headers, timeout=self._timeout)

    def delete(self, target: str, **query: str) -> dict[str, Any]:
        """Raises NoAnswer, Refused."""
        return self._ask("DELETE", target, query, None, {}, timeout=self._timeout)

    def wait(self, target: str, body: object) -> dict[str, Any]:
        """As `post`, for as long as it takes."""
        return self._ask("POST", target, {}, body, {}, timeout=None)

    def stream(self, target: str, body: object) -> Iterator[dict[str, Any]]:
        """Each record of an answer as it comes. Raises NoAnswer, Refused."""
        connection = UnixConnection(self._path, None)
        try:
            connection.request("POST", target, json.dumps(body), _JSON)
            response = connection.getresponse()
            if response.status >= 400:
                raise refusal(response)
            for line in response:
                yield decoded(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._no_answer(error) from error
        finally:
            connection.close()

    def _ask(
        self,
        method: str,
        target: str,
        query: Mapping[str, str],
        body: object,
        headers: Mapping[str, str],
        *,
        timeout: float | None,
    ) -> dict[str, Any]:
        connection = UnixConnection(self._path, timeout)
        sent = json.dumps(body) if body is not None else None
        url = f"{target}?{urlencode(query, errors='replace')}" if query else target
        kind = _JSON if body is not None else {}
        try:
            connection.request(method, url, sent, {**kind, **headers})
            response = connection.getresponse()
            if response.status >= 400:
                raise refusal(response)
            found: dict[str, Any] = decoded(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._no_answer(error) from error
        finally:
            connection.close()
        return found

    def _no_answer(self, error: Exception) -> NoAnswer:
        return NoAnswer(f"no answer from the daemon at {self._path}: {error}")


def refusal(response: http.client.HTTPResponse) -> Refused | OtherVersion:
    """What an answer that is none says. Raises ValueError."""
    body, status = response.read(), response.status
    plain = response.headers.get_content_type() == "text/plain"
    if plain and status in _UNKNOWN and response.headers["Server"] == "mlxd":
        return OtherVersion("the daemon does not know what this command asks for")
    answer = decoded(body)
    said = answer.get("error", answer) if isinstance(answer, dict) else answer
    return Refused(status, str(said))


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket at `path`."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
