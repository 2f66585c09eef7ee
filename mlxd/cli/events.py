"""`mlxd events`: what the daemon decided, and what it decides."""

from __future__ import annotations

import contextlib
import http.client
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from mlxd.cli import exits
from mlxd.cli.admin import Refused, UnixConnection, refusal
from mlxd.cli.client import NoAnswer, address_of, decoded
from mlxd.cli.models.asking import not_done
from mlxd.cli.moments import local
from mlxd.core import places
from mlxd.core.instance import authority, running
from mlxd.core.lines import json_line, one_line
from mlxd.core.places import Places

Json = dict[str, Any]

_TIMEOUT = 60.0
"""Seconds without a word; a stream says something every fifteen."""


def events(
    policies: str | None,
    state: str | None,
    *,
    since: int | None,
    types: str,
    follow: bool,
    as_json: bool,
) -> int:
    """Those after `since`; without it all that are kept. `follow`: and then each as it comes."""
    try:
        for record in _records(places.find(policies, state), since or 0, types, follow=follow):
            print(json_line(record) if as_json else line_of(record))
            sys.stdout.flush()
    except (NoAnswer, Refused) as error:
        return not_done(error, as_json=as_json)
    if follow:
        print("mlxd: the daemon has stopped", file=sys.stderr)
    return exits.DONE


def line_of(record: Json) -> str:
    """One line for people: when, what, in words, and the id to go on from."""
    time = local(record["at"])
    return one_line(f"{time}  {record['type']:<17}  {record['message']}  [{record['id']}]")


_FAREWELL = b": end"


def _records(found: Places, since: int, types: str, *, follow: bool) -> Iterator[Json]:
    """Raises NoAnswer, Refused."""
    query = urlencode({"since": since, "types": types}, errors="replace")
    accept = "text/event-stream" if follow else "application/json"
    connection, path, where = _connected(found)
    try:
        connection.request("GET", f"{path}?{query}", headers={"Accept": accept})
        response = connection.getresponse()
        if response.status >= 400:
            raise refusal(response)
        yield from _streamed(response) if follow else _listed(decoded(response.read()))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoAnswer(f"no answer from the daemon at {where}: {error}") from error
    finally:
        connection.close()


def _connected(found: Places) -> tuple[http.client.HTTPConnection, str, str]:
    """By the admin socket, which tells more, or else over TCP: (connection, path, where).

    Raises NoAnswer.
    """
    daemon = running(found.state.path)
    if daemon is not None and daemon.admin:
        unix = UnixConnection(daemon.admin, _TIMEOUT)
        with contextlib.suppress(OSError):
            unix.connect()
            return unix, "/admin/events", daemon.admin
    host, port = address_of(found)
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    where = f"http://{authority(host, port)}"
    try:
        connection.connect()
    except OSError as error:
        raise NoAnswer(f"no answer from the daemon at {where}: {error}") from error
    return connection, "/api/events", where


def _streamed(response: http.client.HTTPResponse) -> Iterator[Json]:
    """Raises ValueError when it ends without the daemon's last word."""
    last = b""
    for line in response:
        if line.startswith(b"data: "):
            yield decoded(line.removeprefix(b"data: "))
        last = line.strip() or last
    if last != _FAREWELL:
        raise ValueError("it ended in the middle")


def _listed(answer: Any) -> Iterator[Json]:
    yield from answer["events"] if isinstance(answer, dict) else answer
