"""Where a body is parsed, and how a client is asked to send it."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from mlxd.core.errors import InvalidRequest
from mlxd.core.threads import NoThread
from mlxd.policy.load import load
from mlxd.server import intake
from mlxd.server.intake import AT_ONCE, read_body, read_json
from tests.support.few_threads import no_threads

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
    return request, transport


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


async def test_long_bodies_are_parsed_one_after_the_other() -> None:
    """Several at once would share the interpreter with the event loop, and hold it up."""
    requests = [request_of(b"{}".ljust(AT_ONCE + 1))[0] for _ in range(4)]
    ask = [read_json(request, POLICIES, lambda _: threading.get_ident()) for request in requests]
    assert len(set(await asyncio.gather(*ask))) == 1


async def test_a_long_body_that_no_thread_can_be_had_for_is_no_defect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "_reader", lambda: ThreadPoolExecutor(1))
    request, _ = request_of(json.dumps({"a": ""}).encode().ljust(AT_ONCE + 1))
    with no_threads(), pytest.raises(NoThread):
        await read_json(request, POLICIES, dict)
