"""Headers that are too many or too long, however far beyond: 431, and which limit that was."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from mlxd.core.clock import SystemClock
from mlxd.core.errors import HeadersTooLarge
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server.connections import GuardedServer
from mlxd.server.errors import error_response, words_for
from mlxd.server.walls import check_headers

COUNT, SIZE = "server.http.max_headers", "server.http.max_header_bytes"
HEADERS, LONG = 20, 1024


def limits(headers: int = HEADERS) -> PolicySet:
    values = {COUNT: f"{headers}", SIZE: f"{LONG}B"}
    return load(None, [Override(key, value, "a test") for key, value in values.items()])


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, path: str, *headers: str, first: int = 0) -> tuple[int, dict[str, str]]:
        """The status and the headers of the answer; its body is in `said`. So many bytes come
        `first`.
        """
        head = "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", "")).encode()
        if first:
            self._writer.write(head[:first])
            await asyncio.sleep(0.02)
        self._writer.write(head[first:])
        line, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        found = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest)}
        self.said: Any = json.loads(await self._reader.readexactly(int(found["content-length"])))
        return int(line.split()[1]), found


class Bench:
    def __init__(self) -> None:
        self.store = PolicyStore(limits())
        self.server = GuardedServer(self._answer, self.store, SystemClock())

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            check_headers(request, self.store.current)
        except HeadersTooLarge as error:
            return error_response(error, words_for(request))
        return web.json_response({"served": request.path})

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(self.server.connection, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        try:
            async with asyncio.timeout(20):
                yield Client(reader, writer)
        finally:
            writer.close()
            listening.close()
            await self.server.shutdown(0.0)


def several(count: int) -> list[str]:
    return [f"x-{number}: 1" for number in range(count)]


@pytest.mark.parametrize(
    ("path", "headers", "key"),
    [
        ("/", several(HEADERS), COUNT),
        ("/", several(HEADERS * 10), COUNT),
        ("/", [f"x: {'y' * (LONG - 20)}"], SIZE),
        ("/", [f"x: {'y' * LONG}"], SIZE),
        ("/", [f"x: {'y' * LONG * 10}"], SIZE),
        ("/", [f"{'y' * LONG * 10}: x"], SIZE),
        (f"/?{'y' * LONG}", [], SIZE),
    ],
)
async def test_the_answer_names_the_limit(path: str, headers: list[str], key: str) -> None:
    async with Bench().client() as client:
        status, found = await client.ask(path, *headers)
    assert (status, found["x-mlxd-code"]) == (431, "headers_too_large")
    assert found["x-mlxd-policy-key"] == key
    assert key in client.said["error"]


async def test_what_is_allowed_is_served() -> None:
    async with Bench().client() as client:
        for headers in (several(HEADERS - 1), [f"x: {'y' * (LONG - 30)}"]):
            assert (await client.ask("/", *headers))[0] == 200


@pytest.mark.parametrize("first", [0, 60])
@pytest.mark.parametrize("served", [0, 2])
@pytest.mark.parametrize("headers", [several(HEADERS * 2), [f"cookie: {'y' * LONG * 2}"]])
async def test_it_is_said_in_the_words_of_the_api(
    first: int, served: int, headers: list[str]
) -> None:
    for path, named in (
        ("/v1/models?a", {"error"}),
        ("/v1/messages", {"type", "error", "request_id"}),
        ("/api/tags", {"error"}),
    ):
        async with Bench().client() as client:
            for _ in range(served):
                await client.ask("/v1/other")
            assert (await client.ask(path, *headers, first=first))[0] == 431
        assert set(client.said) >= named
        assert ("type" in client.said) is ("type" in named)
        assert isinstance(client.said["error"], str) is (path == "/api/tags")


async def test_a_lowered_number_holds_for_connections_that_are_open() -> None:
    bench = Bench()
    async with bench.client() as client:
        assert (await client.ask("/", *several(15)))[0] == 200
        bench.store.commit(limits(headers=10), [])
        status, found = await client.ask("/", *several(15))
        assert (status, found["x-mlxd-policy-key"]) == (431, COUNT)
        assert (await client.ask("/", *several(9)))[0] == 200


async def test_what_is_no_http_is_400_still() -> None:
    async with Bench().client() as client:
        status, found = await client.ask("/", "no header")
    assert (status, found["x-mlxd-code"]) == (400, "invalid_request")


@pytest.mark.parametrize(("header", "status"), [(f"x: {'y' * LONG * 10}", 431), ("no header", 400)])
async def test_what_cannot_be_read_is_logged_by_the_id_that_its_client_is_told(
    header: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlxd.access")
    async with Bench().client() as client:
        told, found = await client.ask("/", header)
    (line,) = (one for one in caplog.records if one.name == "mlxd.access")
    assert (told, line.getMessage()) == (status, f"an unreadable request {status}")
    assert line.__dict__["request"] == found["x-request-id"]
