"""Which requests are refused before anything is made of them, and which end their connection."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage

from mlxd.server.framing import checked


async def parsed(head: str, body: str = "") -> RawRequestMessage:
    parser = HttpRequestParser(Mock(), asyncio.get_running_loop(), 2**16)
    lines = head.replace("|", "\r\n")
    messages, _, _ = parser.feed_data(f"{lines}\r\n\r\n{body}".encode())
    message: RawRequestMessage = messages[0][0]
    return message


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/0.9|Host: a",
        "GET / HTTP/2.0|Host: a",
        "CONNECT a:443 HTTP/1.1|Host: a:443",
        "POST / HTTP/1.0|Host: a|Transfer-Encoding: chunked",
        "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip, chunked",
        "GET http://b/ HTTP/1.1|Host: a",
        "GET http://a@b/ HTTP/1.1|Host: a",
        "GET http://a:81/ HTTP/1.1|Host: a",
        "GET https://a/ HTTP/1.1|Host: a:80",
    ],
)
async def test_what_can_be_read_in_two_ways_is_refused(head: str) -> None:
    with pytest.raises(BadHttpMessage):
        checked(await parsed(head))


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1|Host: a",
        "GET / HTTP/1.0|Connection: keep-alive",
        "POST / HTTP/1.1|Host: a|Content-Length: 2",
        "GET http://a/ HTTP/1.1|Host: a",
        "GET http://A:80/ HTTP/1.1|Host: a",
        "GET https://a/ HTTP/1.1|Host: a:443",
        "GET http://a/ HTTP/1.0|Connection: keep-alive",
    ],
)
async def test_what_is_clear_passes_and_keeps_its_connection(head: str) -> None:
    message = await parsed(head)
    assert checked(message) is message
    assert not message.should_close


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("POST / HTTP/1.1|Host: a|Transfer-Encoding: Chunked", "0\r\n\r\n"),
        ("GET / HTTP/1.1|Host: a|Connection: Upgrade|Upgrade: h2c", ""),
        ("GET / HTTP/1.1|Host: a|Connection: Upgrade|Upgrade: websocket", ""),
    ],
)
async def test_chunks_and_other_protocols_end_their_connection(head: str, body: str) -> None:
    message = await parsed(head, body)
    assert not message.should_close
    assert checked(message).should_close
