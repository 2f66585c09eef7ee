"""Who may run: slots, the rate window, and what a refusal says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import httpx
import pytest

from tests.integration.talking import (
    ENDLESS,
    IN_TURN,
    PATHS,
    Held,
    Json,
    body_for,
    generate,
    held,
    idle,
    unload,
)
from tests.support.daemon import Daemon, daemon

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(
        sys.platform != "linux", reason="needs the whole of 127.0.0.0/8 for clients of their own"
    ),
]

LIMITS = "concurrency:\n  max_in_flight: 5\nrate_limit:\n  - requests: 30\n    window: 60s\n"
SLOTS_LINE = "limits.yaml:3"
RATE_LINE = "limits.yaml:5"
OVERLOADED = "Server overloaded. Max 5 concurrent requests (server busy, please try again)"
RATE_LIMITED = "Rate limit exceeded. Max 30 requests per 60 seconds"
_ADDRESSES = count(2)
NewClient = Callable[[], httpx.Client]


@pytest.fixture(scope="module")
def limited(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with the default limits, written down; each test is a client of its own."""
    folder = tmp_path_factory.mktemp("limited")
    with daemon(folder, models=zoo, policies={"limits": LIMITS}) as running:
        yield running


@pytest.fixture
def new_client(limited: Daemon) -> Iterator[NewClient]:
    """Makes clients that nobody has seen: each has an address of its own."""
    with ExitStack() as stack:

        def make() -> httpx.Client:
            transport = httpx.HTTPTransport(local_address=f"127.0.0.{next(_ADDRESSES)}")
            return stack.enter_context(
                httpx.Client(base_url=limited.url, transport=transport, timeout=30)
            )

        yield make


@pytest.fixture
def client(new_client: NewClient) -> httpx.Client:
    return new_client()


@pytest.fixture
def full(limited: Daemon, new_client: NewClient) -> Iterator[list[Held]]:
    """All five slots are taken."""
    other = new_client()
    idle(limited)
    with ExitStack() as stack:
        yield [stack.enter_context(held(limited, client=other)) for _ in range(5)]
    idle(limited)


def _one(tokens: int = 1) -> Json:
    return body_for("/api/generate", ENDLESS, "count me", tokens=tokens)


def _message(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", IN_TURN)
def test_a_sixth_request_is_refused_with_the_line_to_change(
    client: httpx.Client, path: str, stream: bool
) -> None:
    body = body_for(path, ENDLESS, "one more", tokens=3) | {"stream": stream}
    answer = client.post(path, json=body)
    assert answer.status_code == 503
    assert _message(answer).startswith(OVERLOADED)
    assert "limits.concurrency.max_in_flight" in answer.text
    assert SLOTS_LINE in answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert answer.headers["x-mlxd-code"] == "overloaded"
    assert answer.headers["x-mlxd-policy-key"] == "limits.concurrency.max_in_flight"
    assert answer.headers["x-mlxd-policy-place"].endswith(SLOTS_LINE)
    if path.startswith("/v1"):
        assert answer.json()["error"]["type"] == "overloaded"


def test_every_slot_taken_stops_no_reading_and_no_loading(
    limited: Daemon, client: httpx.Client, full: list[Held]
) -> None:
    assert client.get("/health").json()["status"] == "degraded"
    assert client.get("/api/tags").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert client.post("/api/generate", json={"model": "tiny-a"}).status_code == 200
    assert limited.health()["active_requests"] == len(full)


def test_a_slot_that_is_given_back_can_be_taken(
    limited: Daemon, client: httpx.Client, full: list[Held]
) -> None:
    assert client.post("/api/generate", json=_one()).status_code == 503
    full[0].hang_up()

    def free() -> bool:
        return bool(limited.health()["active_requests"] == 4)

    from tests.integration.talking import eventually

    eventually(free, "one slot is free", within=4.0)
    assert client.post("/api/generate", json=_one()).status_code == 200


def test_the_thirty_first_request_of_a_window_is_refused(
    limited: Daemon, client: httpx.Client, new_client: NewClient
) -> None:
    for left in range(29, -1, -1):
        answer = client.post("/api/generate", json=_one())
        assert answer.status_code == 200
        assert f"r={left};" in answer.headers["ratelimit"]
        assert "q=30;w=60" in answer.headers["ratelimit-policy"]
    for path in PATHS:
        refused = client.post(path, json=body_for(path, ENDLESS, "x", tokens=1))
        assert refused.status_code == 429
        assert _message(refused).startswith(RATE_LIMITED)
        assert "limits.rate_limit" in refused.text
        assert RATE_LINE in refused.text
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models").status_code == 200
    assert client.post("/api/generate", json={"model": ENDLESS}).status_code == 200
    assert new_client().post("/api/generate", json=_one()).status_code == 200
    assert limited.http.get("/queue/stats").status_code == 200


def _left(answer: httpx.Response) -> int:
    return int(answer.headers["ratelimit"].partition("r=")[2].partition(";")[0])


def test_only_generations_that_could_run_count(client: httpx.Client) -> None:
    before = _left(client.post("/api/generate", json=_one()))
    refusals = [
        client.post("/api/generate", json=_one() | {"model": "nobody"}),
        client.post("/api/generate", json=_one() | {"stream": 5}),
        client.post("/api/generate", content=b"{"),
        client.post("/v1/completions", json={"model": ENDLESS, "prompt": [10**6]}),
    ]
    assert [answer.status_code for answer in refusals] == [404, 400, 400, 400]
    for path in ("/health", "/", "/api/tags", "/api/ps", "/v1/models", "/queue/stats"):
        assert client.get(path).status_code == 200
    assert client.post("/api/show", json={"model": ENDLESS}).status_code == 200
    assert client.post("/api/generate", json={"model": ENDLESS}).status_code == 200
    assert _left(client.post("/api/generate", json=_one())) == before - 1


def test_a_refusal_for_want_of_a_slot_counts(
    limited: Daemon, client: httpx.Client, full: list[Held]
) -> None:
    for _ in range(3):
        assert client.post("/api/generate", json=_one()).status_code == 503
    for stream in full:
        stream.hang_up()
    idle(limited)
    assert _left(client.post("/api/generate", json=_one())) == 30 - 3 - 1


def test_a_ticket_is_held_through_a_load(limited: Daemon, client: httpx.Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tests.integration.talking import eventually

    unload(limited, "tiny-b")
    with ThreadPoolExecutor(1) as pool:
        body = generate("tiny-b", "cold", tokens=1)
        answer = pool.submit(client.post, "/api/generate", json=body)
        eventually(lambda: "tiny-b" in limited.health()["loading_models"], "tiny-b loads")
        assert limited.health()["active_requests"] == 1
        assert answer.result(30).status_code == 200
    idle(limited)
