"""A client that leaves: its generation ends within a step, and its slot is free."""

from __future__ import annotations

import json
import socket
import time

import psutil
import pytest

from tests.integration.talking import (
    ENDLESS,
    PATHS,
    Json,
    ask,
    body_for,
    eventually,
    generate,
    held,
    idle,
    workers_of,
)
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

SOON = 4.0
"""Seconds; what is hung up would go on for longer."""
WATCHED = 0.4


def _request(path: str, body: Json) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _busy(daemon: Daemon, model: str) -> float:
    """The share of a core that the model's worker uses, measured over a moment."""
    worker = psutil.Process(workers_of(daemon)[model])
    before = sum(worker.cpu_times()[:2])
    time.sleep(WATCHED)  # the length of the measurement
    return (sum(worker.cpu_times()[:2]) - before) / WATCHED


def _running(daemon: Daemon) -> bool:
    return bool(daemon.health()["active_requests"])


def test_a_stream_that_is_hung_up_frees_its_slot_and_its_worker(served: Daemon) -> None:
    idle(served)
    with held(served) as stream:
        stream.read(3)
        eventually(lambda: _busy(served, ENDLESS) > 0.1, "the worker works")
    idle(served, within=SOON)
    assert _busy(served, ENDLESS) < 0.1


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_that_nobody_waits_for_is_not_finished(
    served: Daemon, path: str, reset: bool
) -> None:
    ask(served, generate(ENDLESS, "warm", tokens=1))
    idle(served)
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(_request(path, body_for(path, ENDLESS, "leave", tokens=8192)))
        eventually(lambda: _running(served), "the request runs")
        if reset:
            linger = (1).to_bytes(4, "little") + bytes(4)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    idle(served, within=SOON)


def test_several_answers_in_one_stream_end_together(served: Daemon) -> None:
    idle(served)
    body = body_for("/v1/chat/completions", ENDLESS, "leave", tokens=8192)
    body |= {"stream": True, "n": 4}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as response:
        begun: set[int] = set()
        lines = response.iter_lines()  # forgotten, it would hang up
        for line in lines:
            choices = json.loads(line[6:])["choices"] if line.startswith("data: ") else []
            begun |= {one["index"] for one in choices if one["delta"].get("content")}
            if len(begun) == 4:
                break
        assert served.health()["active_requests"] == 1
    idle(served, within=SOON)
    assert _busy(served, ENDLESS) < 0.1


def test_a_whole_answer_that_nobody_waits_for_leaves_the_worker_idle(served: Daemon) -> None:
    ask(served, generate(ENDLESS, "warm", tokens=1))
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        body = body_for("/api/chat", ENDLESS, "leave", tokens=8192)
        sock.sendall(_request("/api/chat", body))
        eventually(lambda: _running(served), "the request runs")
    idle(served, within=SOON)
    assert _busy(served, ENDLESS) < 0.1


def test_hanging_up_leaves_no_trace_of_a_fault_in_the_log(served: Daemon) -> None:
    with held(served) as stream:
        stream.read(2)
    idle(served)
    assert "Traceback" not in served.log_text()
    assert '"level": "error"' not in served.log_text()


def test_eight_that_hang_up_together_leave_the_ninth_exact(served: Daemon) -> None:
    from contextlib import ExitStack

    body = generate(ENDLESS, "ninth", tokens=60)
    expected = ask(served, body)["response"]
    with ExitStack() as stack:
        others = [
            stack.enter_context(held(served, prompt=f"other {number}")) for number in range(8)
        ]
        with served.http.stream("POST", "/api/generate", json=body) as response:
            lines = response.iter_lines()
            found = [json.loads(next(lines)) for _ in range(10)]
            for other in others:
                other.hang_up()
            found += [json.loads(line) for line in lines]
    assert "".join(record["response"] for record in found) == expected
    idle(served, within=SOON)


@pytest.mark.slow
def test_a_client_that_leaves_while_its_model_loads_frees_its_slot(start: object) -> None:
    daemon: Daemon = start()  # type: ignore[operator]
    with socket.create_connection(("127.0.0.1", daemon.port)) as sock:
        sock.sendall(_request("/api/chat", body_for("/api/chat", "tiny-a", "x", tokens=5)))
        eventually(lambda: daemon.health()["loading_models"] == ["tiny-a"], "tiny-a loads")
        assert daemon.health()["active_requests"] == 1
    idle(daemon, within=SOON)
    assert ask(daemon, generate("tiny-a", "x", tokens=2))["response"]
    assert len(daemon.workers()) == 1
