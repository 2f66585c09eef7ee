"""One of every kind of refusal: none says who answers, in which version, or where; each can be read
by a page of an origin that is allowed.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.talking import drain
from tests.integration.test_keys import new_key
from tests.support.daemon import Daemon, daemon, write_policies
from tests.support.refusals import PATHS, leaks_of, words_of
from tests.support.smuggling import Answer, answers_in

WALLS = (
    "http:\n"
    "  header_timeout: 500ms\n"
    "  body_idle_timeout: 500ms\n"
    "  keep_alive: 500ms\n"
    "  max_body: 64KiB\n"
)
LOCKED = "auth: {required: true, guesses: {max: 3, window: 60s, penalty: 60s}}\n"
ORIGIN = "http://localhost:3000"


@dataclass(frozen=True)
class Asked:
    """A request that is refused."""

    status: int
    line: str
    headers: tuple[str, ...] = ()
    body: bytes = b""
    read: bool = True
    """It is a request, so that its Origin is known."""

    def bytes(self, *more: str) -> bytes:
        given = {header.partition(":")[0].lower() for header in self.headers}
        own = ["Connection: close", *([] if "host" in given else ["Host: localhost"])]
        if not given & {"content-length", "transfer-encoding"}:
            own.append(f"Content-Length: {len(self.body)}")
        head = [f"{self.line} HTTP/1.1", *own, *self.headers, *more, "", ""]
        return "\r\n".join(head).encode() + self.body


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def _of_each_api() -> Iterator[tuple[str, Asked]]:
    for path in PATHS:
        line = f"POST {path}"
        yield f"{path}: no body", Asked(400, line)
        yield f"{path}: no json", Asked(400, line, body=b"{'a'}")
        yield f"{path}: no utf-8", Asked(400, line, body=b'{"a": "\xff"}')
        yield f"{path}: deep", Asked(400, line, body=b'{"a":' + b"[" * 200 + b"]" * 200 + b"}")
        yield f"{path}: a wrong type", Asked(400, line, body=_json(model=5, messages=5))
        yield f"{path}: no model", Asked(404, line, body=_json(
            model="no-such", max_tokens=5, messages=[{"role": "user", "content": "x"}],
        ))  # fmt: skip
        yield f"{path}: a path", Asked(404, line, body=_json(
            model="../../../etc/passwd", max_tokens=5, messages=[{"role": "user", "content": "x"}],
        ))  # fmt: skip
        yield f"{path}: too large", Asked(413, line, ("Content-Length: 70000",))
        yield f"{path}: an encoding", Asked(415, line, ("Content-Encoding: br",), b"{}")
        yield f"{path}: not encoded so", Asked(400, line, ("Content-Encoding: gzip",), b"{}")
        yield f"{path}: a slow body", Asked(408, line, ("Content-Length: 10",), b"{")
        yield f"{path}: long headers", Asked(431, line, tuple(
            f"X-{n}: {'y' * 1000}" for n in range(20)
        ), b"{}")  # fmt: skip
        yield f"{path}: a foreign host", Asked(403, line, ("Host: evil.example",), b"{}")
        yield f"{path}: another method", Asked(405, f"PATCH {path}")


REFUSALS = dict(_of_each_api()) | {
    "no such path": Asked(404, "GET /no-such"),
    "no such path of OpenAI's": Asked(404, "GET /v1/no-such"),
    "a path that climbs": Asked(404, "GET /api/models/..%2f..%2fetc%2fpasswd"),
    "no such model": Asked(404, "GET /v1/models/no-such"),
    "no such response": Asked(404, "GET /v1/responses/no-such"),
    "nothing to delete": Asked(404, "DELETE /api/delete", body=_json(model="no-such")),
    "nothing to show": Asked(404, "POST /api/show", body=_json(model="/etc/passwd")),
    "nothing to copy": Asked(404, "POST /api/copy", body=_json(source="a/b/c", destination="d")),
    "a file that is another": Asked(400, f"POST /api/blobs/sha256:{'0' * 64}", body=b"{}"),
    "no file's name": Asked(400, "POST /api/blobs/sha256:..%2f..", body=b"{}"),
    "nobody's account": Asked(401, "POST /api/me"),
    "a model sent away": Asked(404, "POST /api/push", body=_json(model="no-such")),
    "no http": Asked(400, "GET /a b", read=False),
    "a line feed": Asked(400, "GET / HTTP/1.1\nX: y", read=False),
    "a long header": Asked(431, "GET /", (f"X: {'y' * 70_000}",), read=False),
    "a tunnel": Asked(400, "CONNECT localhost:1", read=False),
    "a slow header": Asked(408, "POST /api/chat", ("X-Slow: y\r\nX: \x00"[:-1],), read=False),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without models: none is needed."""
    with daemon(tmp_path_factory.mktemp("bare"), policies={"server": WALLS}) as running:
        yield running


def refusal(daemon: Daemon, asked: Asked, *headers: str) -> Answer:
    sent = asked.bytes(*headers)
    if asked.status == 408 and not asked.read:
        sent = sent.removesuffix(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as sock:
        sock.sendall(sent)
        [answer] = answers_in(drain(sock))
    return answer


@pytest.mark.parametrize("name", REFUSALS)
def test_no_refusal_says_who_answers_or_where(bare: Daemon, name: str) -> None:
    asked = REFUSALS[name]
    answer = refusal(bare, asked)
    assert answer.status == asked.status, answer
    assert leaks_of(answer) == []
    path = asked.line.split(" ")[1]
    if path in PATHS and asked.read and asked.status != 405:
        assert words_of(path, answer)


@pytest.mark.parametrize("name", [name for name, asked in REFUSALS.items() if asked.read])
def test_a_page_that_may_ask_may_read_why_it_was_refused(bare: Daemon, name: str) -> None:
    answer = refusal(bare, REFUSALS[name], f"Origin: {ORIGIN}")
    assert answer.status == REFUSALS[name].status
    head = answer.head.decode().lower()
    assert f"access-control-allow-origin: {ORIGIN}" in head
    assert "vary: origin" in head


@pytest.mark.parametrize(
    "origin",
    ["null", "https://evil.example", "http://localhost.evil.example", "http://localhost@evil",
     "http://localhost:80.evil.example", "chrome:x", ""],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_foreign_page_reads_nothing(bare: Daemon, method: str, origin: str) -> None:
    answer = refusal(bare, Asked(403, f"{method} /api/tags"), f"Origin: {origin}")
    assert answer.status == 403
    assert b"access-control" not in answer.head.lower()
    assert leaks_of(answer) == []


def test_who_is_not_known_learns_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("locked")
    write_policies(folder / "policies", {"clients": LOCKED})
    new_key(folder)
    with daemon(folder, policies={"clients": LOCKED, "server": WALLS}) as running:
        statuses = []
        for path in PATHS:
            asked = Asked(401, f"POST {path}", body=b"{}")
            for headers in ((), *((f"x-api-key: guess-{path}-{n}",) for n in range(2))):
                answer = refusal(running, asked, f"Origin: {ORIGIN}", *headers)
                assert words_of(path, answer)
                assert b"access-control-allow-origin" in answer.head.lower()
                statuses.append(answer.status)
        assert set(statuses) == {401, 429}
