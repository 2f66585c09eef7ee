"""A real daemon writes down what it is asked, and a simulation of that is what it did."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxd.cli import main
from mlxd.daemon.traffic import FOLDER
from mlxd.policy.load import load
from mlxd.simulate.traffic.outcome import measured
from mlxd.simulate.traffic.reading import read
from mlxd.simulate.traffic.world import World
from mlxd.telemetry import traffic
from mlxd.telemetry.traffic import Line, Loaded, Opening, Request
from tests.integration.talking import ENDLESS, eventually, generate, held, idle
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

POLICIES = {
    "limits": "concurrency: {max_in_flight: 1}\nrate_limit: [{requests: 3, window: 1h}]\n",
    "server": "traffic: {record: true}\n",
}
FLOOD = 40
"""More than go the ordinary way."""
SECRET = "nobody shall read this"


@pytest.fixture(scope="module")
def recorded(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """It has served one, refused two, cut one off, turned a flood away, served its owner and
    ended.
    """
    folder = tmp_path_factory.mktemp("recorded")
    with daemon(folder, models=zoo, policies=POLICIES) as running:
        ask: dict[str, Any] = generate("tiny-a", SECRET, tokens=9) | {"priority": "high"}
        ask |= {"keep_alive": -1}
        headers = {"x-request-id": "my-own-id"}
        running.http.post("/api/generate", json=ask, headers=headers)
        with held(running, ENDLESS) as stream:
            running.http.post("/api/generate", json=ask)  # no slot: and yet it counts
            stream.read(3)
        idle(running)
        turned_away(running, ask)
        running.http.post("/api/generate", json={"model": "tiny-a", "keep_alive": 0})
        running.http.get("/api/tags")
        asked_by_its_owner(running)
        running.stop()
        yield running


def turned_away(running: Daemon, ask: dict[str, Any]) -> None:
    """A flood of requests over the rate: each in one piece, without a header that need not be."""
    body = json.dumps(ask).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        for _ in range(FLOOD):
            connection.sendall(head.encode() + body)
            with http.client.HTTPResponse(connection) as answer:
                answer.begin()
                assert answer.status == 429
                answer.read()


def asked_by_its_owner(running: Daemon) -> None:
    """As `mlxd bench` does."""
    transport = httpx.HTTPTransport(uds=running.address().admin)
    body = {"model": ENDLESS, "prompt": SECRET, "max_tokens": 1}
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        assert client.post("/admin/completions", json=body, timeout=60).status_code == 200


def lines_of(running: Daemon) -> list[Line]:
    raw = (running.state / FOLDER / traffic.FILE).read_bytes()
    return [traffic.decode(line) for line in raw.splitlines()]


def test_every_generation_is_a_line_and_the_last_one_is_there_too(recorded: Daemon) -> None:
    first, *lines = lines_of(recorded)
    assert isinstance(first, Opening)
    assert first.memory > 2**30
    requests = [line for line in lines if isinstance(line, Request)]
    flood = [one for one in requests if one.code == "rate_limited"]
    assert sum(one.repeats or 1 for one in flood) == FLOOD > len(flood)
    requests = [one for one in requests if one not in flood[1:]]
    assert [(one.model, one.status, one.code, one.owner) for one in requests] == [
        ("tiny-a", 200, "", False),
        ("tiny-a", 503, "overloaded", False),
        (ENDLESS, 499, "", False),
        ("tiny-a", 429, "rate_limited", False),
        (ENDLESS, 200, "", True),
    ]
    loads = [line for line in lines if isinstance(line, Loaded)]
    assert [one.model for one in loads] == ["tiny-a", ENDLESS]
    assert all(one.bytes and one.seconds for one in loads)


def test_a_line_tells_what_was_asked_and_what_it_took(recorded: Daemon) -> None:
    served = next(line for line in lines_of(recorded) if isinstance(line, Request))
    assert (served.want, served.stream, served.max_tokens, served.rated) == (
        "answer", True, 9, True,
    )  # fmt: skip
    assert (served.wished, served.klass, served.keep_alive) == ("high", "high", -1.0)
    assert served.completion == 9
    assert served.prompt > 0
    assert served.cost > 9
    assert served.judged is not None
    assert served.waited is not None
    assert served.ttft is not None
    slot = served.judged + served.waited
    assert 0 <= slot < slot + served.load < served.ttft < slot + served.held <= served.lasted
    assert served.load > 0.05  # it had to be loaded
    assert served.prefill > 0
    assert served.decode > 0


def test_nothing_in_it_is_of_what_was_said_or_who_said_it(recorded: Daemon) -> None:
    text = (recorded.state / FOLDER / traffic.FILE).read_text()
    for secret in (SECRET, "my-own-id", "127.0.0.1"):
        assert secret not in text


def test_a_simulation_of_it_is_what_it_was(
    recorded: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--policies", str(recorded.policies), "--state", str(recorded.state)]
    assert main(["policy", "simulate", *places]) == 0
    table = capsys.readouterr().out.splitlines()
    everybody = next(n for n, line in enumerate(table) if line.startswith("all "))
    for line in table[everybody : everybody + 2]:
        assert "overloaded 1" in line
        assert f"rate_limited {FLOOD}" in line
        assert "client_left 1" in line
    loads = next(line for line in table if line.startswith("loads "))
    assert loads.startswith(("loads 2 -> 2,", "loads 2 -> 1,")), "who leaves may leave before it"
    log = read([recorded.state / FOLDER])
    simulated = World(log, load(recorded.policies)).run().outcomes
    assert [one.code for one in simulated] == [one.code for one in measured(log.requests)]


def test_where_it_cannot_be_written_health_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = (
        f"traffic: {{record: true, folder: {tmp_path / 'file'}}}\n"
        "traces: {endpoint: credential:nope}\n"
    )
    with daemon(tmp_path, policies={"server": server}) as running:
        running.http.post("/api/generate", json=generate("nobody", "hi", tokens=1))

        def warned() -> bool:
            said = " ".join(running.health()["warnings"])
            return "the traffic log" in said and "traces are not sent" in said

        eventually(warned, "both are warned of")
