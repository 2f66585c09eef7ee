"""A flood of refusals: what is answered before there is a handler, and what never is."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import (
    Again,
    MlxdError,
    Overloaded,
    RateLimited,
    TooManyGuesses,
    Unauthorized,
)
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.server import repeats
from mlxd.server.answers import json_response
from mlxd.server.connection import Connection
from mlxd.server.connections import GuardedServer
from mlxd.server.edge import STORY, Edge, policies_of
from mlxd.server.errors import Render, words_for
from mlxd.server.forwarded import address_of
from mlxd.server.identity import Identity
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.repeats import HOLDS_SECONDS, ORDINARY, Repeats
from mlxd.telemetry.events import Events
from mlxd.telemetry.metrics import Metrics
from mlxd.telemetry.rejections import Rejections

OPENAI, OLLAMA, ANTHROPIC = "/v1/chat/completions", "/api/chat", "/v1/messages"
FIRST = ORDINARY + 1
"""What is repeated, and the repetitions that go the ordinary way."""
PATHS = (OPENAI, OLLAMA, ANTHROPIC)
GIVEN = 'mine \\ "quoted"'


class Wire(asyncio.Transport):
    """A client that takes what it is sent, unless a test says that it does not."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5000)})
        self.sent = b""
        self.untaken = 0

    def write(self, data: Any) -> None:
        self.sent += data

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def get_write_buffer_size(self) -> int:
        return self.untaken

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Bench:
    """A server whose one endpoint does what a test says; it counts what reaches a handler."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = PolicyStore(load())
        self.events = Events(self.clock)
        self.rejections = Rejections(self.events)
        self.metrics = Metrics()
        self.repeats = Repeats(self.store, self.clock, self.rejections, self.metrics)
        parts = SimpleNamespace(
            policies=self.store,
            clock=self.clock,
            metrics=self.metrics,
            rejections=self.rejections,
            stories=SimpleNamespace(end=lambda story, status, code: None),
            state=SimpleNamespace(draining=False),
            admission=SimpleNamespace(draining=False),
        )
        edge = Edge(
            cast("Parts", parts),
            self._route,
            callers=cast("Identity", self),
            refused=self.repeats.learn,
        )
        self.server = GuardedServer(edge, self.store, self.clock)
        self.server.answers = self.repeats
        self.unknown: Callable[[], MlxdError | None] = lambda: None
        self.identified = 0
        self.handled = 0
        self.still = True
        self.asked_again = 0
        self.refuse: Callable[[Any], MlxdError | None] = lambda body: self.rate_limited()
        self.hold: asyncio.Event | None = None
        self.connection, self.wire = self.connected()

    def connected(self) -> tuple[Connection, Wire]:
        connection, wire = self.server.connection(), Wire()
        connection.connection_made(wire)
        return connection, wire

    def rate_limited(self) -> MlxdError:
        return self._with_again(RateLimited("too often", retry_after=7.0), whatever=True)

    def full(self) -> MlxdError:
        return self._with_again(Overloaded("server busy", retry_after=2.0), whatever=False)

    def _with_again(self, error: MlxdError, *, whatever: bool) -> MlxdError:
        error.again = Again(self._still, whatever=whatever)
        return error

    def _still(self) -> bool:
        self.asked_again += 1
        return self.still

    def identify(self, request: web.BaseRequest, policies: PolicySet, now: float) -> Caller:
        self.identified += 1
        error = self.unknown()
        if error is not None:
            raise error
        return Caller(address_of(request, policies))

    def _route(self, request: web.BaseRequest) -> Any:
        return _Endpoint(self, words_for(request))

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.handled += 1
        body = await read_json(request, policies_of(request), lambda body: body)
        request[STORY].model = str(body.get("model"))
        if self.hold is not None:
            await self.hold.wait()
        error = self.refuse(body)
        if error is not None:
            raise error
        return json_response({"served": self.handled})

    async def ask(self, data: bytes, on: tuple[Connection, Wire] | None = None) -> bytes:
        """Send it, and return what comes back once nothing more is under way."""
        connection, wire = on or (self.connection, self.wire)
        wire.sent = b""
        await self.settled(connection)
        connection.data_received(data)
        await self.settled(connection)
        return wire.sent

    async def settled(self, connection: Connection) -> None:
        for _ in range(200):
            await asyncio.sleep(0)
            if connection.waiting and not connection._messages:
                return

    async def flooded(self, data: bytes) -> bytes:
        """Refused so often that repetitions are answered at once; returns an ordinary answer."""
        answer = b""
        for _ in range(FIRST):
            answer = await self.ask(data)
        assert self.handled == FIRST
        return answer

    async def at_once(self, data: bytes) -> bool:
        """Whether it is answered without a handler."""
        before = self.handled
        assert await self.ask(data)
        return self.handled == before

    def edit(self) -> None:
        self.store._current = self.edited()

    def edited(self) -> PolicySet:
        return load(None, [Override("limits.choices", "3", "a test")])


class _Endpoint:
    def __init__(self, bench: Bench, render: Render) -> None:
        self._bench = bench
        self.render_error = render

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._bench.serve(request)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    if bench.hold is not None:
        bench.hold.set()
    bench.repeats.close()
    bench.rejections.close()
    bench.connection.connection_lost(None)
    await bench.server.shutdown(0.0)


def raw(path: str = OPENAI, text: str = "hello", version: str = "1.1", **headers: str) -> bytes:
    said = {"messages": [{"role": "user", "content": text}]} if text else {"messages": []}
    body = json.dumps({"model": "m", **said}).encode()
    all_headers = {"Host": "localhost:11435", "Content-Length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
    return f"POST {path} HTTP/{version}\r\n{lines}\r\n".encode() + body


def without_id(answer: bytes) -> bytes:
    """An answer whose id and date are those of all others."""
    answer = re.sub(rb"Date: [^\r]+", b"Date: D", answer)
    found = re.search(rb"X-Request-Id: ([^\r]+)", answer)
    assert found is not None
    return answer.replace(found[1], b"ID")


@pytest.mark.parametrize("kind", ["rate_limited", "full"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_repetition_is_told_what_the_ordinary_way_would_tell_it(
    bench: Bench, path: str, kind: str
) -> None:
    bench.refuse = lambda body: getattr(bench, kind)()
    ordinary = await bench.flooded(raw(path))
    again = await bench.ask(raw(path))
    assert bench.handled == FIRST
    assert bench.asked_again == 1
    assert without_id(again) == without_id(ordinary)
    assert again != ordinary
    assert (b'"request_id":"' in again) == (path == ANTHROPIC)


@pytest.mark.parametrize("path", PATHS)
async def test_a_repetition_has_its_own_id(bench: Bench, path: str) -> None:
    ordinary = await bench.ask(raw(path, X_Request_Id=GIVEN))
    for _ in range(FIRST - 1):
        await bench.ask(raw(path))
    again = await bench.ask(raw(path, X_Request_Id=GIVEN))
    assert without_id(again) == without_id(ordinary)
    assert again.count(GIVEN.encode()) == ordinary.count(GIVEN.encode())
    assert bench.handled == FIRST
    head, _, body = ordinary.partition(b"\r\n\r\n")
    assert f"X-Request-Id: {GIVEN}\r\nRequest-Id: {GIVEN}\r\n".encode() in head
    assert json.loads(body).get("request_id", GIVEN) == GIVEN


async def test_no_more_are_known_than_there_is_room_for(bench: Bench) -> None:
    bench.refuse = lambda body: bench.full()
    for number in range(repeats._MOST_KNOWN + 50):
        await bench.ask(raw(text=f"hello {number}"))
    assert len(bench.repeats._known) == repeats._MOST_KNOWN


async def test_the_first_of_each_second_go_the_ordinary_way(bench: Bench) -> None:
    await bench.flooded(raw())
    for _ in range(3):
        bench.clock.advance(1.0)
        bench.handled = 0
        for _ in range(3 * ORDINARY):
            await bench.ask(raw())
        assert bench.handled == ORDINARY


async def test_answers_come_in_the_order_of_the_requests(bench: Bench) -> None:
    await bench.flooded(raw())
    bench.refuse = lambda body: None if body["messages"][0]["content"] == "other" else bench.full()
    other = raw(text="other", Accept="x")
    said = await bench.ask(raw() + raw() + other + raw())
    statuses = re.findall(rb"HTTP/1.1 (\d+)", said)
    assert statuses == [b"429", b"429", b"200", b"503"]
    assert bench.handled == FIRST + 2


async def test_no_repetition_overtakes_an_answer_that_is_under_way(bench: Bench) -> None:
    await bench.flooded(raw())
    bench.hold, bench.refuse = asyncio.Event(), lambda body: None
    bench.wire.sent = b""
    bench.connection.data_received(raw(Accept="x"))
    for _ in range(5):
        await asyncio.sleep(0)
    bench.connection.data_received(raw())
    assert bench.wire.sent == b""
    bench.hold.set()
    await bench.settled(bench.connection)
    assert bench.wire.sent.count(b"HTTP/1.1 200") == 2


async def test_as_many_as_come_at_once_are_answered(bench: Bench) -> None:
    """aiohttp's parser gives so many of them at a time, and then waits to be asked."""
    await bench.flooded(raw())
    said = await bench.ask(raw() * 300)
    assert said.count(b"HTTP/1.1 429") == 300
    assert bench.handled == FIRST
    assert await bench.at_once(raw())


async def test_a_connection_is_idle_once_it_has_its_answer(bench: Bench) -> None:
    await bench.flooded(raw())
    assert await bench.at_once(raw())
    now, policies = bench.clock.monotonic(), bench.store.current
    stays = float(policies.server.http.keep_alive)
    assert bench.connection.overdue(now, policies) is None
    assert bench.connection.overdue(now + stays - 1, policies) is None
    assert bench.connection.overdue(now + stays, policies) == b""


def chunked(data: bytes) -> bytes:
    head, _, body = data.partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    return head + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize(
    "data",
    [
        chunked(raw()),
        raw(version="1.0"),
        raw(version="1.0", Connection="keep-alive"),
        raw(Expect="100-continue"),
        raw(Upgrade="h2c"),
        raw(X_Request_Id="x" * 129),
    ],
    ids=["chunked", "1.0", "1.0 that stays", "Expect", "Upgrade", "a long id"],
)
async def test_what_is_not_plain_goes_the_ordinary_way(bench: Bench, data: bytes) -> None:
    for _ in range(FIRST):
        await bench.ask(raw())
    on = bench.connected()
    await bench.ask(data, on)
    assert bench.handled == FIRST + 1
    on[0].connection_lost(None)


async def test_a_body_that_comes_in_parts_goes_the_ordinary_way(bench: Bench) -> None:
    await bench.flooded(raw())
    data = raw()
    bench.wire.sent = b""
    bench.connection.data_received(data[:-5])
    await asyncio.sleep(0)
    bench.connection.data_received(data[-5:])
    await bench.settled(bench.connection)
    assert bench.wire.sent.startswith(b"HTTP/1.1 429")
    assert bench.handled == FIRST + 1
    assert await bench.at_once(data)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"Host": "evil.example"}, b"403"),
        ({"Origin": "https://evil.example"}, b"403"),
        ({"Authorization": "Bearer other"}, b"429"),
        ({f"Padding-{n}": "x" * 6_000 for n in range(6)}, b"431"),
    ],
)
async def test_no_wall_is_passed_by(bench: Bench, header: dict[str, str], status: bytes) -> None:
    await bench.flooded(raw())
    on = bench.connected()
    said = await bench.ask(raw(**header), on)
    assert said.startswith(b"HTTP/1.1 " + status)
    assert bench.repeats._known
    assert not any(one.count for one in bench.repeats._known.values())
    on[0].connection_lost(None)


async def test_another_address_is_another_client(bench: Bench) -> None:
    await bench.flooded(raw())
    connection, wire = bench.server.connection(), Wire()
    wire._extra["peername"] = ("127.0.0.2", 5000)  # type: ignore[attr-defined]
    connection.connection_made(wire)
    await bench.ask(raw(), (connection, wire))
    assert bench.handled == FIRST + 1
    connection.connection_lost(None)


async def test_a_new_connection_of_the_same_client_is_answered_at_once(bench: Bench) -> None:
    await bench.flooded(raw())
    on = bench.connected()
    assert (await bench.ask(raw(), on)).startswith(b"HTTP/1.1 429")
    assert bench.handled == FIRST
    on[0].connection_lost(None)


async def test_what_is_remembered_does_not_hold_the_request(bench: Bench) -> None:
    await bench.ask(raw())
    known = list(bench.repeats._known.values())
    assert [one.error.__traceback__ for one in known] == [None]


async def test_an_edit_of_policies_holds_at_once(bench: Bench) -> None:
    await bench.flooded(raw())
    assert await bench.at_once(raw())
    bench.edit()
    assert not await bench.at_once(raw())


async def test_who_refused_has_the_last_word(bench: Bench) -> None:
    await bench.flooded(raw())
    bench.still = False
    assert not await bench.at_once(raw())


async def test_one_renews_what_is_said_when_it_gets_old(bench: Bench) -> None:
    await bench.flooded(raw())
    bench.clock.advance(HOLDS_SECONDS / 2 - 0.01)
    assert await bench.at_once(raw())
    bench.clock.advance(0.01)
    assert not await bench.at_once(raw())
    bench.clock.advance(HOLDS_SECONDS / 2 - 0.01)
    assert await bench.at_once(raw())


async def test_others_do_not_wait_for_the_one_that_renews_it(bench: Bench) -> None:
    await bench.flooded(raw())
    bench.clock.advance(HOLDS_SECONDS / 2)
    bench.hold = asyncio.Event()
    bench.connection.data_received(raw())
    on = bench.connected()
    assert (await bench.ask(raw(), on)).startswith(b"HTTP/1.1 429")
    assert bench.handled == FIRST + 1
    bench.hold.set()
    await bench.settled(bench.connection)
    on[0].connection_lost(None)


async def test_what_nobody_vouches_for_is_not_repeated(bench: Bench) -> None:
    bench.refuse = lambda body: RateLimited("too often", retry_after=7.0)
    await bench.flooded(raw())
    assert not await bench.at_once(raw())


@pytest.mark.parametrize("path", PATHS)
async def test_whom_no_answer_is_given_is_told_so_whatever_is_asked(
    bench: Bench, path: str
) -> None:
    await bench.flooded(raw(path))
    assert await bench.at_once(raw(path, "something else"))


@pytest.mark.parametrize("path", PATHS)
async def test_a_slot_that_is_missing_is_missing_for_the_same_request(
    bench: Bench, path: str
) -> None:
    bench.refuse = lambda body: bench.full()
    await bench.flooded(raw(path))
    assert not await bench.at_once(raw(path, "something else"))
    assert await bench.at_once(raw(path))


async def test_loading_a_model_is_no_answer(bench: Bench) -> None:
    await bench.flooded(raw(OLLAMA))
    assert not await bench.at_once(raw(OLLAMA, ""))


async def test_a_connection_that_is_to_end_is_told_so(bench: Bench) -> None:
    await bench.flooded(raw())
    bench.connection.leaving = True
    assert b"Connection: close" in await bench.ask(raw())
    assert bench.handled == FIRST + 1


async def test_who_does_not_take_its_answers_is_not_sent_more(bench: Bench) -> None:
    await bench.flooded(raw())
    bench.wire.untaken = 1
    assert not await bench.at_once(raw())


async def test_their_number_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mlxd.access")
    await bench.flooded(raw())
    assert len(caplog.records) == FIRST
    for _ in range(500):
        await bench.ask(raw())
    bench.repeats.close()
    bench.rejections.close()
    assert [record.getMessage() for record in caplog.records][FIRST:] == [
        f"POST {OPENAI} 429, and 500 more like it"
    ]
    told = [event for event in bench.events.since() if event.type == "reject"]
    assert [event.data["count"] for event in told] == [500]
    assert told[0].data["model"] == "m"
    assert b'mlxd_refusals_total{code="rate_limited"} 500.0' in bench.metrics.render()


async def test_they_are_told_while_the_flood_lasts(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mlxd.access")
    await bench.flooded(raw())
    await bench.ask(raw())
    bench.repeats._look()
    assert caplog.records[-1].getMessage() == f"POST {OPENAI} 429, and 1 more like it"
    bench.clock.advance(HOLDS_SECONDS)
    bench.repeats._look()
    assert len(caplog.records) == FIRST + 1
    assert not bench.repeats._known


async def test_who_keeps_each_request_is_told_of_which_they_are(bench: Bench) -> None:
    told: list[tuple[object, ...]] = []
    bench.repeats.on_told = lambda story, *of: told.append((story.id, *of))
    await bench.flooded(raw(X_Request_Id="first"))
    zero = bench.clock.wall()
    for _ in range(3):
        bench.clock.advance(0.1)
        assert await bench.at_once(raw())
    bench.clock.advance(0.3)
    assert not await bench.at_once(raw(X_Request_Id="second"))  # it renews what is said
    assert await bench.at_once(raw())
    bench.repeats._look()
    bench.repeats._look()
    assert told == [("second", 4, pytest.approx(zero + 0.1), pytest.approx(zero + 0.6))]
    bench.clock.advance(0.1)
    assert await bench.at_once(raw())
    bench.repeats._look()
    assert told[1:] == [("second", 1, pytest.approx(zero + 0.7), pytest.approx(zero + 0.7))]


# -- those who are not known


async def test_whoever_sends_no_key_again_is_told_so_at_once(bench: Bench) -> None:
    bench.unknown = lambda: Unauthorized("an API key is required")
    ordinary = b""
    for number in range(FIRST):
        ordinary = await bench.ask(raw(text=str(number)))
    again = await bench.ask(raw(text="other"))
    assert bench.identified == FIRST
    assert without_id(again) == without_id(ordinary)
    assert again.startswith(b"HTTP/1.1 401")
    assert bench.handled == 0
    bench.unknown = lambda: None
    await bench.ask(raw(Authorization="Bearer good"))
    assert bench.handled == 1
    bench.edit()
    bench.unknown, bench.refuse = lambda: None, lambda body: None
    assert (await bench.ask(raw())).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
async def test_a_key_that_is_not_known_is_looked_up_each_time(bench: Bench, header: str) -> None:
    bench.unknown = lambda: Unauthorized("the API key is not known")
    for _ in range(3 * FIRST):
        await bench.ask(raw(**{header: "Bearer bad"}))
    assert bench.identified == 3 * FIRST


async def test_a_penalty_is_told_at_once_until_it_is_over(bench: Bench) -> None:
    bench.unknown = lambda: TooManyGuesses("too many", retry_after=0.3)
    for _ in range(FIRST):
        await bench.ask(raw(Authorization="Bearer bad"))
    bench.clock.advance(0.2)
    assert (await bench.ask(raw(Authorization="Bearer bad"))).startswith(b"HTTP/1.1 429")
    assert bench.identified == FIRST
    bench.unknown = lambda: None
    await bench.ask(raw(Authorization="Bearer other"))
    assert bench.handled == 1
    bench.clock.advance(0.2)
    await bench.ask(raw(Authorization="Bearer bad"))
    assert bench.handled == 2


@pytest.mark.parametrize("error", [Unauthorized("no key"), TooManyGuesses("too many")])
async def test_those_who_are_not_known_are_counted(bench: Bench, error: MlxdError) -> None:
    bench.unknown = lambda: error
    for _ in range(3 * FIRST):
        await bench.ask(raw())
    bench.repeats.close()
    labels = {"code": error.code}
    told = bench.metrics.registry.get_sample_value("mlxd_refusals_total", labels)
    assert told == 3 * FIRST


async def test_a_client_that_asks_before_aiohttp_waits_again_is_answered_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would go the ordinary way each time, as long as it is quick."""
    await bench.flooded(raw())
    bench.still = False
    connection, write = bench.connection, bench.wire.write

    def written(data: Any) -> None:
        write(data)
        if not bench.still:
            bench.still = True
            asyncio.get_running_loop().call_soon(asked_again)

    def asked_again() -> None:
        assert not connection.waiting
        connection.data_received(raw())

    monkeypatch.setattr(bench.wire, "write", written)
    both = await bench.ask(raw())
    assert both.count(b"HTTP/1.1 429") == 2
    assert bench.handled == FIRST + 1
