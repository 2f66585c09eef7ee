"""Requests that wait for their turn, as their clients see it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from tests.integration.conftest import Start
from tests.integration.talking import (
    PATHS,
    Held,
    Json,
    body_for,
    data_of,
    eventually,
    held,
    idle,
    ndjson,
)
from tests.support.daemon import Daemon, daemon
from tests.support.fleet import PACED
from tests.support.later import Later

if TYPE_CHECKING:
    import anthropic
else:
    anthropic = Later("anthropic")

pytestmark = pytest.mark.mlx

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
EVERYWHERE = (*PATHS, RESPONSES, MESSAGES)
COMMENT = re.compile(r"^: queued position=(\d+) expected_wait=(\d+)$", re.MULTILINE)


def limits(slots: int, waiting: int) -> str:
    return (
        f"concurrency: {{max_in_flight: {slots}, max_waiting: {waiting}}}\n"
        "rate_limit: []\ntokens: {max_output: 60000}\n"
    )


def times(queue: str = "60s", first_byte: str = "200ms") -> str:
    return f"queue: {queue}\nfirst_byte: {first_byte}\n"


@pytest.fixture(scope="module")
def queueing(paced: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One slot, and a queue before it; each test edits what it wants otherwise."""
    folder = tmp_path_factory.mktemp("queueing")
    policies = {"limits": limits(1, 300), "timeouts": times(), **paced}
    many = httpx.Limits(max_connections=None)
    with (
        daemon(folder, policies=policies) as running,
        httpx.Client(base_url=running.url, timeout=60, limits=many) as http,
    ):
        running.http.close()
        running.http = http
        yield running


@pytest.fixture
def queue(queueing: Daemon) -> Iterator[Daemon]:
    """Nobody runs or waits in it, before and afterwards."""
    edit(queueing, limits=limits(1, 300), timeouts=times())
    idle(queueing)
    yield queueing
    eventually(lambda: waiting(queueing) == 0, "nobody waits")
    idle(queueing)


def edit(running: Daemon, **files: str) -> None:
    for kind, text in files.items():
        running.edit(kind, text)
    assert running.reload()["result"] in {"applied", "unchanged"}


@contextmanager
def full(running: Daemon, slots: int = 1) -> Iterator[list[Held]]:
    """Every slot is taken; those that are still held are hung up at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(held(running, PACED, tokens=50_000)) for _ in range(slots)]


def waiting(running: Daemon) -> int:
    return int(running.health()["queue"]["waiting"])


def until_waiting(running: Daemon, count: int) -> None:
    eventually(lambda: waiting(running) == count, f"{count} wait")


def body_of(path: str, tokens: int = 2, *, stream: bool = False) -> Json:
    if path in (RESPONSES, MESSAGES):
        said = [{"role": "user", "content": "wait"}]
        if path == RESPONSES:
            tokens = max(16, tokens)
            return {"model": PACED, "input": said, "max_output_tokens": tokens, "stream": stream}
        return {"model": PACED, "messages": said, "max_tokens": tokens, "stream": stream}
    return body_for(path, PACED, "wait", tokens=tokens) | {"stream": stream}


def ask(running: Daemon, path: str = "/api/generate", **headers: str) -> httpx.Response:
    return running.http.post(path, json=body_of(path), headers=headers)


@pytest.mark.parametrize("many", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_many_at_once_are_served_once_as_many_may_wait(queue: Daemon, many: int) -> None:
    edit(queue, limits=limits(5, 0))

    async def together() -> list[int]:
        most = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=queue.url, timeout=120, limits=most) as http:
            one = await http.post("/api/generate", json=body_of("/api/generate", 1))
            assert one.status_code == 503
            edit(queue, limits=limits(5, 300))
            asked = [
                asyncio.ensure_future(http.post("/api/generate", json=body_of("/api/generate", 1)))
                for _ in range(many)
            ]
            await asyncio.to_thread(until_waiting, queue, many)
            for stream in running:
                stream.hang_up()
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    before = queue.http.get("/queue/stats").json()["stats"]
    with full(queue, 5) as running:
        assert asyncio.run(together()) == [200] * many
    stats = queue.http.get("/queue/stats").json()["stats"]
    assert stats["total_queued"] >= before["total_queued"] + many
    assert stats["total_expired"] == before["total_expired"]


def in_order(
    running: Daemon, klass: str, count: int, pool: ThreadPoolExecutor
) -> list[Future[str]]:
    """So many of a class, all of which wait now; each tells when the daemon made its answer."""

    def served() -> str:
        answer = ask(running, **{"X-Request-Priority": klass})
        assert (answer.status_code, answer.headers["x-mlxd-priority"]) == (200, klass)
        return str(answer.json()["created_at"])

    before = waiting(running)
    asked = [pool.submit(served) for _ in range(count)]
    until_waiting(running, before + count)
    return asked


@pytest.mark.parametrize("lows", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_a_high_one_overtakes_the_low_ones_that_wait(queue: Daemon, lows: int) -> None:
    with ThreadPoolExecutor(lows + 1) as pool, full(queue) as [running]:
        low = in_order(queue, "low", lows, pool)
        [high] = in_order(queue, "high", 1, pool)
        assert queue.http.get("/queue/stats").json()["queued"] == {
            "high": 1, "medium": 0, "low": lows,
        }  # fmt: skip
        running.hang_up()
        assert high.result() < sorted(one.result() for one in low)[1], "one may have been quicker"


def wait_on_a_socket(running: Daemon, path: str = "/api/generate") -> socket.socket:
    body = json.dumps(body_of(path)).encode()
    sock = socket.create_connection(("127.0.0.1", running.port), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


def test_who_leaves_gives_its_place_to_another(queue: Daemon) -> None:
    edit(queue, limits=limits(1, 1))
    with full(queue), wait_on_a_socket(queue) as leaver:
        until_waiting(queue, 1)
        refused = ask(queue)
        assert (refused.status_code, refused.headers["x-mlxd-code"]) == (503, "queue_full")
        assert refused.headers["x-mlxd-policy-key"] == "limits.concurrency.max_waiting"
        assert "busy" in refused.text
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert '"queue";r=0' in refused.headers["ratelimit"]
        leaver.close()
        until_waiting(queue, 0)
        with wait_on_a_socket(queue):
            until_waiting(queue, 1)


def test_who_waited_long_enough_is_told_so_in_the_words_of_its_api(queue: Daemon) -> None:
    edit(queue, timeouts=times(queue="300ms", first_byte="10s"))
    with full(queue), ThreadPoolExecutor(2 * len(EVERYWHERE)) as pool:

        def refused(path: str, stream: bool) -> httpx.Response:
            return queue.http.post(path, json=body_of(path, stream=stream))

        asked = [
            pool.submit(refused, path, stream) for path in EVERYWHERE for stream in (False, True)
        ]
        for answer in (one.result() for one in asked):
            assert answer.status_code == 503
            assert answer.headers["x-mlxd-code"] == "queue_timeout"
            assert answer.headers["x-mlxd-policy-key"] == "timeouts.queue"
            assert "timeouts.yaml:2" in answer.text


def test_behind_the_status_line_it_is_the_last_record(queue: Daemon) -> None:
    edit(queue, timeouts=times(queue="600ms", first_byte="100ms"))
    with full(queue), ThreadPoolExecutor(len(EVERYWHERE)) as pool:

        def told(path: str) -> httpx.Response:
            return queue.http.post(path, json=body_of(path, stream=True))

        answers = {path: pool.submit(told, path) for path in EVERYWHERE}
        for path, asked in answers.items():
            answer = asked.result()
            assert answer.status_code == 200, path
            assert int(answer.headers["x-mlxd-queue-position"]) >= 1
            if path.startswith("/api/"):
                [record] = ndjson(answer)
                assert record["code"] == "queue_timeout"
            else:
                assert COMMENT.search(answer.text), path
            assert "timeouts.queue: 600ms" in answer.text, path


def test_a_stream_that_waits_is_told_how_it_stands(queue: Daemon) -> None:
    """Two of them, so that the position of the second changes; then both are read to the end."""
    path = "/v1/chat/completions"
    with (
        full(queue) as [running],
        wait_on_a_socket(queue),
        httpx.Client(base_url=queue.url, timeout=60) as http,
    ):
        until_waiting(queue, 1)
        with http.stream("POST", path, json=body_of(path, stream=True)) as answer:
            assert answer.headers["x-mlxd-queue-position"] == "2"
            assert int(answer.headers["x-mlxd-expected-wait"]) >= 0
            pieces = answer.iter_text()
            said = next(pieces)
            assert COMMENT.findall(said)[0][0] == "2"
            running.hang_up()
            said += "".join(pieces)
    *chunks, last = data_of(said)
    assert last == "[DONE]"
    assert all(json.loads(chunk)["choices"] for chunk in chunks)


def test_the_clients_of_event_streams_pass_over_comments(queue: Daemon) -> None:
    def of_openai() -> str:
        client = openai.OpenAI(base_url=f"{queue.url}/v1", api_key="any", max_retries=0)
        said = [{"role": "user", "content": "wait"}]
        stream = client.chat.completions.create(
            model=PACED, messages=said, stream=True, max_tokens=8  # type: ignore[arg-type]
        )  # fmt: skip
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)  # type: ignore[union-attr]

    def of_responses() -> str:
        client = openai.OpenAI(base_url=f"{queue.url}/v1", api_key="any", max_retries=0)
        with client.responses.stream(model=PACED, input="wait", max_output_tokens=16) as stream:
            return "".join(e.delta for e in stream if e.type == "response.output_text.delta")

    def of_anthropic() -> str:
        client = anthropic.Anthropic(base_url=queue.url, api_key="any", max_retries=0)
        said = [{"role": "user", "content": "wait"}]
        with client.messages.stream(model=PACED, messages=said, max_tokens=8) as stream:
            return "".join(stream.text_stream)

    readers = (of_openai, of_responses, of_anthropic)
    with full(queue) as [running], ThreadPoolExecutor(len(readers)) as pool:
        read = [pool.submit(reader) for reader in readers]
        until_waiting(queue, len(readers))
        time.sleep(1.5)  # the status line is out after 0.2 s, and each has been told its place
        running.hang_up()
        assert all(one.result() for one in read)


def test_ndjson_is_told_nothing(queue: Daemon) -> None:
    with full(queue) as [running], ThreadPoolExecutor(1) as pool:
        path = "/api/chat"
        asked = pool.submit(queue.http.post, path, json=body_of(path, stream=True))
        until_waiting(queue, 1)
        time.sleep(1.5)
        running.hang_up()
        answer = asked.result()
    assert answer.headers["x-mlxd-queue-position"] == "1"
    records = ndjson(answer)
    assert records[-1]["done"]


def test_a_lowered_limit_stops_nobody(queue: Daemon) -> None:
    with ThreadPoolExecutor(4) as pool, full(queue) as [running]:
        asked = [pool.submit(ask, queue) for _ in range(4)]
        until_waiting(queue, 4)
        edit(queue, limits=limits(1, 1))
        assert waiting(queue) == 4
        assert ask(queue).headers["x-mlxd-code"] == "queue_full"
        running.hang_up()
        assert [one.result().status_code for one in asked] == [200] * 4


def test_health_says_how_busy_it_is_and_an_unknown_class_is_none(queue: Daemon) -> None:
    health = queue.health()
    assert (health["free_slots"], health["queue"]) == (1, {"waiting": 0, "max_waiting": 300})
    assert health["expected_wait_seconds"] == {"high": 0.0, "medium": 0.0, "low": 0.0}
    with full(queue), wait_on_a_socket(queue):
        until_waiting(queue, 1)
        health = queue.health()
        assert (health["free_slots"], health["status"]) == (0, "degraded")
        assert all(wait > 0 for wait in health["expected_wait_seconds"].values())
        metrics = queue.http.get("/metrics").text
        assert 'mlxd_queue_waiting{class="medium"} 1.0' in metrics
        assert "mlxd_slots 1.0" in metrics
    answer = ask(queue, **{"X-Request-Priority": "urgent"})
    assert answer.status_code == 400
    assert "X-Request-Priority" in answer.text


def test_a_stop_ends_the_wait(start: Start, paced: dict[str, str]) -> None:
    stopping = start({"limits": limits(1, 10), "timeouts": times(first_byte="10s"), **paced})
    with full(stopping), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, stopping)
        until_waiting(stopping, 1)
        stopping.process.send_signal(signal.SIGTERM)
        answer = asked.result()
    assert (answer.status_code, answer.headers["x-mlxd-code"]) == (503, "draining")
