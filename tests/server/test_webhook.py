"""Events that are posted: signed, in order, again when they were not taken, and not for ever."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mlxd.core.clock import SystemClock
from mlxd.policy import credential
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.server import certificates, webhook
from mlxd.server.webhook import ATTEMPTS, Webhook, signature
from mlxd.telemetry.events import KEPT, Events

KEY = "supervision.events.webhook"


class Receiver:
    """Answers with `statuses`, one after the other, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.hold: asyncio.Event | None = None
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self.server = TestServer(app)

    async def _take(self, request: web.Request) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        if self.hold is not None:
            await self.hold.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    @property
    def url(self) -> str:
        return str(self.server.make_url("/hook"))

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    @property
    def messages(self) -> list[str]:
        return [body["message"] for body in self.bodies]


class Bench:
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.events = Events(SystemClock(), 1_000_000)
        self.counts: Counter[str] = Counter()
        self.webhook = Webhook(self.policies(), self.events, self._count)

    def policies(self, **values: str) -> PolicySet:
        wanted = {"url": self.receiver.url} | values
        return load(
            None,
            [Override(f"{KEY}.{key}", text, "a test", yaml=True) for key, text in wanted.items()],
        )

    def _count(self, result: str) -> None:
        self.counts[result] += 1

    def apply(self, **values: str) -> None:
        self.webhook.apply(self.policies(**values))


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(webhook, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(webhook, "_MOST_SECONDS", 0.02)
    receiver = Receiver()
    await receiver.server.start_server()
    bench = Bench(receiver)
    yield bench
    bench.events.close()
    await bench.webhook.close()
    await receiver.server.close()


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not fact():  # noqa: ASYNC110 - the receiver tells nobody
            await asyncio.sleep(0.005)


async def test_an_event_is_posted_as_the_stream_has_it(bench: Bench) -> None:
    event = bench.events.record("worker_down", "тест", {"model": "m"})
    bench.webhook.start()
    await until(lambda: bench.counts["delivered"])
    headers, body = bench.receiver.requests[0]
    assert json.loads(body) == event.as_json()
    assert headers["Content-Type"] == "application/json"
    assert (headers["X-Mlxd-Event"], headers["X-Mlxd-Event-Id"]) == ("worker_down", str(event.id))
    assert "X-Mlxd-Signature" not in headers


async def test_what_was_not_taken_is_posted_again_and_the_order_stays(bench: Bench) -> None:
    bench.receiver.statuses = [500, 302, 404]
    for number in range(3):
        bench.events.record("load", str(number))
    bench.webhook.start()
    await until(lambda: bench.counts["delivered"] == 3)
    assert bench.receiver.messages == ["0", "0", "0", "0", "1", "2"]
    assert bench.counts == {"failed": 3, "delivered": 3}
    assert not any("elsewhere" in str(headers) for headers, _ in bench.receiver.requests)


class Asked:
    """A session that nobody answers, and that knows what each URL was asked with."""

    def __init__(self) -> None:
        self.trust: dict[str, object] = {}

    def post(self, url: str, *, ssl: object, **_: Any) -> Any:
        self.trust[url] = ssl
        raise aiohttp.ClientError

    async def close(self) -> None:
        """Nothing to close."""


async def test_whom_the_machine_trusts_is_read_for_https_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[ssl.SSLContext] = []

    def read() -> ssl.SSLContext:
        reads.append(ssl.create_default_context())
        return reads[-1]

    monkeypatch.setattr(certificates, "read", read)
    asked = Asked()
    monkeypatch.setattr(bench.webhook, "_session", asked)
    bench.apply(url="http://hook.example/")
    bench.events.record("load", "a")
    bench.webhook.start()
    await until(lambda: asked.trust)
    assert (asked.trust, reads) == ({"http://hook.example/": True}, [])
    bench.apply(url="https://hook.example/")
    await until(lambda: len(asked.trust) == 2)
    await until(lambda: bench.counts["given_up"])
    assert [asked.trust["https://hook.example/"]] == reads


async def test_it_is_signed_with_a_secret_that_may_change(bench: Bench, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("first\n")
    bench.apply(secret=str(secret))
    bench.webhook.start()
    bench.events.record("load", "a")
    await until(lambda: bench.counts["delivered"] == 1)
    secret.write_text("second")
    bench.events.record("load", "b")
    await until(lambda: bench.counts["delivered"] == 2)
    for (headers, body), key in zip(bench.receiver.requests, (b"first", b"second"), strict=True):
        expected = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
        assert headers["X-Mlxd-Signature"] == expected == signature(key.decode(), body)


async def test_nothing_is_posted_unsigned_for_want_of_the_secret(
    bench: Bench, tmp_path: Path
) -> None:
    bench.apply(secret=str(tmp_path / "none"))
    bench.webhook.start()
    bench.events.record("load", "a")
    await until(lambda: bench.counts["failed"])
    assert bench.receiver.requests == []


async def test_a_secret_that_hangs_holds_one_thread(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    begun: list[str] = []

    def hanging(reference: str) -> str:
        begun.append(reference)
        release.wait(20)
        return "key"

    monkeypatch.setattr(credential, "read", hanging)
    bench.apply(secret=str(tmp_path / "key"), timeout="20ms")
    bench.webhook.start()
    bench.events.record("load", "a")
    await until(lambda: bench.counts["failed"] >= 4)
    assert len(begun) == 1
    bench.apply(secret=str(tmp_path / "key"))
    release.set()
    await until(lambda: bench.counts["delivered"])


async def test_want_of_a_thread_is_one_more_failed_attempt(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_self: object) -> None:
        raise RuntimeError("can't start new thread")

    (tmp_path / "key").write_text("key")
    bench.apply(secret=str(tmp_path / "key"))
    bench.webhook.start()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        bench.events.record("load", "a")
        await until(lambda: bench.counts["failed"])
    await until(lambda: bench.counts["delivered"])


@pytest.mark.parametrize(
    "url", ["http://user:TOKEN@127.0.0.1:1/TOKEN?key=TOKEN", "ftp://TOKEN", "http://TOKEN:x/"]
)
async def test_the_url_may_be_a_secret_and_is_never_told(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, url: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "hook").write_text(url)
    bench.apply(url="credential:hook")
    bench.webhook.start()
    with caplog.at_level(logging.DEBUG):
        bench.events.record("load", "a")
        await until(lambda: bench.counts["failed"])
    assert "the webhook does not take events" in caplog.text
    assert "TOKEN" not in caplog.text
    (warning,) = bench.webhook.warnings()
    assert "supervision.events.webhook" in warning
    assert "TOKEN" not in warning
    (tmp_path / "hook").write_text(f"{bench.receiver.url}?key=TOKEN")
    await until(lambda: bench.counts["delivered"])
    assert bench.webhook.warnings() == []


async def test_one_that_is_never_taken_is_given_up(bench: Bench) -> None:
    bench.receiver.statuses = [503] * ATTEMPTS
    bench.events.record("load", "lost cause")
    bench.events.record("load", "next")
    bench.webhook.start()
    await until(lambda: bench.counts["delivered"])
    assert bench.counts == {"failed": ATTEMPTS, "given_up": 1, "delivered": 1}
    assert bench.receiver.messages == ["lost cause"] * ATTEMPTS + ["next"]


async def test_of_another_receiver_nothing_is_warned_that_an_earlier_one_did(bench: Bench) -> None:
    bench.receiver.statuses = [503] * ATTEMPTS
    bench.webhook.start()
    bench.events.record("load", "lost cause")
    await until(lambda: bench.counts["given_up"])
    assert "it answered 503" in bench.webhook.warnings()[0]
    bench.apply(url=f"{bench.receiver.url}/other")
    assert bench.webhook.warnings() == []
    bench.receiver.statuses = [404] * ATTEMPTS
    bench.events.record("load", "next")
    await until(lambda: bench.counts["failed"] > ATTEMPTS)
    assert "it answered 404" in bench.webhook.warnings()[0]


async def test_a_receiver_that_does_not_answer_holds_up_the_event_and_nothing_else(
    bench: Bench,
) -> None:
    bench.receiver.hold = asyncio.Event()
    bench.apply(timeout="50ms")
    bench.webhook.start()
    bench.events.record("load", "a")
    await until(lambda: bench.counts["failed"])
    bench.receiver.hold.set()
    await until(lambda: bench.counts["delivered"])


async def test_only_the_types_that_policy_names_are_posted(bench: Bench) -> None:
    bench.apply(events="[breaker]")
    bench.webhook.start()
    bench.events.record("load", "no")
    bench.events.record("breaker", "yes")
    await until(lambda: bench.counts["delivered"])
    assert bench.receiver.messages == ["yes"]


async def test_without_a_url_events_go_by_and_with_one_the_next_is_posted(bench: Bench) -> None:
    bench.webhook.apply(load())
    bench.webhook.start()
    bench.events.record("load", "before")
    await asyncio.sleep(0.05)
    bench.apply()
    bench.events.record("load", "after")
    await until(lambda: bench.counts["delivered"])
    assert bench.receiver.messages == ["after"]


async def test_a_change_of_policy_is_tried_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_FIRST_SECONDS", 3600.0)
    bench.apply(url="http://127.0.0.1:1/")
    bench.webhook.start()
    bench.events.record("load", "a")
    await until(lambda: bench.counts["failed"])
    bench.apply()
    await until(lambda: bench.counts["delivered"])


async def test_after_a_long_absence_the_receiver_is_told_how_much_it_missed(bench: Bench) -> None:
    bench.receiver.hold = asyncio.Event()
    bench.webhook.start()
    bench.events.record("load", "first")
    await until(lambda: bench.receiver.requests)
    for number in range(KEPT + 5):
        bench.events.record("worker_over_limit" if number else "load", str(number))
    bench.receiver.hold.set()
    await until(lambda: len(bench.receiver.requests) > 1)
    assert bench.receiver.bodies[1]["type"] == "lost"
    assert bench.receiver.bodies[1]["data"] == {"count": 5}


async def test_at_the_end_what_is_left_is_posted(bench: Bench) -> None:
    bench.webhook.start()
    bench.events.record("load", "last")
    bench.events.close()
    await bench.webhook.close()
    assert bench.receiver.messages == ["last"]


async def test_a_receiver_that_does_not_answer_holds_up_no_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_LAST_SECONDS", 0.05)
    bench.receiver.hold = asyncio.Event()
    bench.webhook.start()
    bench.events.record("load", "a")
    await until(lambda: bench.receiver.requests)
    bench.events.close()
    async with asyncio.timeout(4):  # timeout is 5 s by policy
        await bench.webhook.close()
    bench.receiver.hold.set()
