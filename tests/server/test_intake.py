"""Where a body is parsed, and how a client is asked to send it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from mlxd.control.turns import Turns
from mlxd.core.caller import Caller
from mlxd.core.clock import SystemClock
from mlxd.core.errors import InvalidRequest
from mlxd.policy.load import load
from mlxd.server import intake
from mlxd.server.edge import CALLER, CLOCK, TURNS
from mlxd.server.intake import AT_ONCE, in_thread, read_body, read_json

POLICIES = load()
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def request_of(body: bytes, **headers: str) -> tuple[web.Request, Mock]:
    loop = asyncio.get_running_loop()
    content = StreamReader(Mock(spec=BaseProtocol), 2**16, loop=loop)
    content.feed_data(body)
    content.feed_eof()
    transport = Mock()
    request = make_mocked_request(
        "POST", "/api/chat", headers=headers, payload=content, transport=transport
    )
    request[CLOCK], request[TURNS], request[CALLER] = SystemClock(), Turns(), Caller("me")
    return request, transport


async def test_long_bodies_are_parsed_of_each_client_in_its_turn() -> None:
    turns, order, may = Turns(), list[str](), threading.Event()

    def read(name: str) -> None:
        may.wait(10)
        order.append(name)

    async def ask(name: str) -> None:
        request, _ = request_of(b"{}".ljust(AT_ONCE + 1))
        request[TURNS], request[CALLER] = turns, Caller(name[0])
        await read_json(request, POLICIES, lambda _: read(name))

    asked = [asyncio.create_task(ask(name)) for name in ("a1", "a2", "a3", "a4", "b1")]
    await asyncio.sleep(0.05)
    may.set()
    await asyncio.gather(*asked)
    assert order == ["a1", "a2", "b1", "a3", "a4"]


@pytest.mark.parametrize(("length", "apart"), [(AT_ONCE, False), (AT_ONCE + 1, True)])
async def test_a_long_body_is_parsed_beside_the_event_loop(length: int, apart: bool) -> None:
    body = json.dumps({"a": ""}).encode().ljust(length)
    request, _ = request_of(body)
    found = await read_json(request, POLICIES, lambda value: (value, threading.get_ident()))
    assert found[0] == {"a": ""}
    assert (found[1] != threading.get_ident()) is apart


@pytest.mark.parametrize("length", [0, AT_ONCE + 1])
async def test_a_refusal_is_the_same_wherever_it_arises(length: int) -> None:
    def refuse(body: dict[str, Any]) -> None:
        raise InvalidRequest("no", param="a")

    request, _ = request_of(b"{}".ljust(length))
    with pytest.raises(InvalidRequest, match="no"):
        await read_json(request, POLICIES, refuse)


@pytest.mark.parametrize(
    ("headers", "asked"),
    [({"Expect": "100-Continue"}, True), ({}, False), ({"Expect": "x"}, False)],
)
async def test_a_client_that_waits_to_be_asked_is_asked(
    headers: dict[str, str], asked: bool
) -> None:
    request, transport = request_of(b"{}", **headers)
    assert await read_body(request, POLICIES) == b"{}"
    assert transport.write.call_args_list == ([((CONTINUE,),)] if asked else [])


async def test_where_there_is_no_thread_a_long_body_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And by the thread as soon as there is one, each piece of work once."""
    did = list[int]()

    def work() -> int:
        did.append(threading.get_ident())
        return len(did)

    def none(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    intake._reader.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        assert [await in_thread(work), await in_thread(work)] == [1, 2]
    assert await in_thread(work) == 3
    assert did[0] == did[1] == threading.get_ident() != did[2]


async def test_long_bodies_are_parsed_one_after_the_other() -> None:
    """Several at once would share the interpreter with the event loop, and hold it up."""
    requests = [request_of(b"{}".ljust(AT_ONCE + 1))[0] for _ in range(4)]
    ask = [read_json(request, POLICIES, lambda _: threading.get_ident()) for request in requests]
    assert len(set(await asyncio.gather(*ask))) == 1
