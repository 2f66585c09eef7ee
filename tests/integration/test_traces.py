"""A real daemon and its workers, and what a receiver of traces is told of their requests."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxd.server.otlp import SECONDS
from mlxd.telemetry.span_sink import GATHER_SECONDS
from tests.integration.conftest import IMPATIENT, NO_LIMITS, Start
from tests.integration.talking import (
    ENDLESS,
    TRIES,
    ask,
    body_for,
    eventually,
    generate,
    held,
    idle,
    workers_of,
)
from tests.support.canaries import Canaries
from tests.support.daemon import Daemon, daemon, free_port
from tests.support.receiver import Got, Receiver, receiver

pytestmark = pytest.mark.mlx

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SERVER = 2
PART_OF_A_SECOND = 500_000_000
"""In nanoseconds."""


def server_yaml(url: str, more: str = "") -> str:
    return f"traces: {{endpoint: '{url}'{more}}}\n"


@pytest.fixture(scope="module")
def world(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Receiver]]:
    """A daemon that traces everything."""
    folder = tmp_path_factory.mktemp("traced")
    with receiver() as got:
        policies = {"limits": NO_LIMITS, "server": server_yaml(got.url), "supervision": IMPATIENT}
        with daemon(folder, models=zoo, policies=policies) as running:
            yield running, got


def tree(got: Receiver, id: str) -> list[Got]:
    """The spans of the request with this id, once they have come."""
    return eventually(lambda: got.of_request(id), f"the spans of {id}")


def headers(id: str, **more: str) -> dict[str, str]:
    return {"x-request-id": id, **more}


def speaking(running: Daemon, id: str) -> httpx.Client:
    """A client whose requests have this id."""
    return httpx.Client(base_url=running.url, headers=headers(id), timeout=60)


def by_name(spans: list[Got]) -> dict[str, Got]:
    return {span.name: span for span in spans}


def spans_total(running: Daemon) -> dict[str, float]:
    lines = running.http.get("/metrics").text.splitlines()
    start = 'mlxd_trace_spans_total{result="'
    found = [line.removeprefix(start) for line in lines if line.startswith(start)]
    return {line.partition('"')[0]: float(line.rpartition(" ")[2]) for line in found}


def check_nested(spans: list[Got]) -> None:
    """Each within its parent, and no two children of a worker at one time."""
    by_id = {span.id: span for span in spans}
    for span in spans:
        assert span.start <= span.end
        above = by_id.get(span.parent)
        if above is not None:
            assert above.start <= span.start, (above, span)
            assert span.end <= above.end, (above, span)


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/api/chat", False),
        ("/v1/chat/completions", True),
        pytest.param("/api/chat", True, marks=pytest.mark.slow),
        pytest.param("/v1/chat/completions", False, marks=pytest.mark.slow),
    ],
)
def test_one_request_is_one_tree_over_both_processes(
    world: tuple[Daemon, Receiver], path: str, stream: bool
) -> None:
    running, got = world
    id = f"one-{path}-{stream}"
    body = body_for(path, "tiny-a", "tell me", tokens=9) | {"stream": stream}
    began = time.time_ns()
    running.http.post(path, json=body, headers=headers(id)).raise_for_status()
    spans = tree(got, id)
    root = next(span for span in spans if not span.parent)
    assert (root.name, root.kind, root.failed) == (f"POST {path}", SERVER, False)
    found = by_name(spans)
    assert found.keys() - {"load"} == {root.name, "queue", "worker", "prefill", "decode"}
    worker = found["worker"]
    assert {found["queue"].parent, worker.parent} == {root.id}
    assert {found["prefill"].parent, found["decode"].parent} == {worker.id}
    assert len({span.id for span in spans}) == len(spans)
    assert began <= root.start < root.end <= time.time_ns()
    check_nested(spans)
    assert found["queue"].end <= worker.start <= found["prefill"].start < found["prefill"].end
    assert found["prefill"].end == found["decode"].start < found["decode"].end == worker.end
    assert worker.attributes["process.pid"] == workers_of(running)["tiny-a"]
    assert root.resource["process.pid"] == running.pid
    assert root.resource["service.name"] == "mlxd"


def test_the_root_says_what_was_asked_and_what_it_took(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    body = body_for("/v1/chat/completions", "tiny-b", "say it", tokens=7)
    answer = running.http.post("/v1/chat/completions", json=body, headers=headers("facts")).json()
    spans = tree(got, "facts")
    root, found = spans[0], by_name(spans)
    usage = answer["usage"]
    expected = {
        "http.request.method": "POST", "http.route": "/v1/chat/completions",
        "http.response.status_code": 200, "mlxd.dialect": "openai", "mlxd.request.id": "facts",
        "gen_ai.request.model": "tiny-b", "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }  # fmt: skip
    assert expected.items() <= root.attributes.items()
    assert found["decode"].attributes["mlxd.decode.tokens"] == usage["completion_tokens"]
    assert found["worker"].attributes["mlxd.worker.prompt_tokens"] == usage["prompt_tokens"]
    assert found["worker"].attributes["gen_ai.response.finish_reasons"] in (["stop"], ["length"])
    load = found["load"]
    assert load.parent == root.id
    assert load.end - load.start > PART_OF_A_SECOND / 10
    assert found["queue"].end <= load.start
    assert load.end <= found["worker"].start


def test_the_workers_times_are_its_own(world: tuple[Daemon, Receiver]) -> None:
    """What its end frame measured is as long as the spans are."""
    running, got = world
    body = generate("tiny-a", "how long", tokens=40) | {"stream": False}
    answer = running.http.post("/api/generate", json=body, headers=headers("times")).json()
    found = by_name(tree(got, "times"))
    decode, prefill = found["decode"], found["prefill"]
    assert decode.end - decode.start == pytest.approx(answer["eval_duration"], abs=1000)
    assert prefill.end - prefill.start == pytest.approx(answer["prompt_eval_duration"], abs=1000)


def test_a_trace_goes_on_from_its_clients(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    given = headers("given", traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="a=1,b=2")
    ask_with(running, given)
    spans = tree(got, "given")
    root = next(span for span in spans if span.name.startswith("POST"))
    assert (root.trace, root.parent, root.state) == (TRACE, PARENT, "a=1,b=2")
    assert {span.trace for span in spans} == {TRACE}
    assert {span.state for span in spans} == {"a=1,b=2"}


def test_what_its_client_does_not_sample_is_not_traced(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    ask_with(running, headers("unsampled", traceparent=f"00-{'a' * 32}-{PARENT}-00"))
    ask_with(running, headers("behind-it"))
    tree(got, "behind-it")
    assert not got.of_request("unsampled")


def test_a_malformed_parent_is_none(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    ask_with(running, headers("malformed", traceparent=f"00-{'0' * 32}-{PARENT}-01"))
    root = tree(got, "malformed")[0]
    assert root.parent == ""
    assert root.trace.strip("0")


def ask_with(running: Daemon, said: dict[str, str]) -> httpx.Response:
    body = generate("tiny-a", "go on", tokens=3) | {"stream": False}
    return running.http.post("/api/generate", json=body, headers=said)


def test_a_refused_request_says_why_and_nothing_else(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    words = Canaries()
    said = headers("refused", authorization=f"Bearer {words['wrong-key']}")
    body = {"model": words["model"], "messages": [{"role": "user", "content": words["prompt"]}]}
    answer = running.http.post("/v1/chat/completions", json=body, headers=said)
    assert answer.status_code == 404
    (root,) = tree(got, "refused")
    assert root.attributes["error.type"] == "model_not_found"
    assert root.attributes["http.response.status_code"] == 404
    assert not root.failed, "it is the client's doing"
    running.http.post("/api/chat", content=words["broken"], headers=headers("broken"))
    (root,) = tree(got, "broken")
    assert root.attributes["error.type"] == "invalid_request"
    assert list(words.found_in(got.raw)) == []


def test_nothing_that_anybody_said_is_in_any_span(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    words = Canaries()
    tool = {"name": "f", "description": words["tool"], "parameters": {"type": "object"}}
    body: dict[str, Any] = {
        "model": "tiny-a",
        "messages": [
            {"role": "system", "content": words["system"]},
            {"role": "user", "content": words["prompt"]},
        ],
        "stop": [words["stop"]],
        "temperature": 0,
        "tools": [{"type": "function", "function": tool}],
        "max_tokens": 40,
    }
    said = {
        "authorization": f"Bearer {words['wrong-key']}", "user-agent": words["agent"],
        "cookie": words["cookie"], "x-own": words["header"],
    }  # fmt: skip
    path = f"/v1/chat/completions?q={words['path']}"
    refused = running.http.post(path, json=body, headers=headers("refused-tools", **said))
    assert refused.status_code == 400
    del body["tools"]
    served = running.http.post(path, json=body, headers=headers("said", **said)).json()
    assert tree(got, "said")[0].name == tree(got, "refused-tools")[0].name
    answer = served["choices"][0]["message"]["content"]
    assert len(answer) > 8, "what is shorter may stand in other words"
    assert answer.encode() not in got.raw
    assert list(words.found_in(got.raw)) == []


def test_what_is_no_request_to_a_model_has_no_spans(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    for path in ("/health", "/metrics", "/api/tags", "/no/such/path"):
        running.http.get(path, headers=headers(f"get{path}"))
    running.http.get("/api/chat", headers=headers("get-chat"))
    ask_with(running, headers("and-then"))
    tree(got, "and-then")
    assert not any("get" in span.attributes.get("mlxd.request.id", "") for span in got.spans)


def test_a_client_that_hangs_up_ends_its_spans(world: tuple[Daemon, Receiver]) -> None:
    running, got = world
    with speaking(running, "left") as client, held(running, client=client) as stream:
        stream.read(3)
    spans = tree(got, "left")
    found, root = by_name(spans), spans[0]
    assert root.attributes["error.type"] == "left"
    assert root.attributes["http.response.status_code"] == 499
    assert found["worker"].attributes["error.type"] == "cancelled"
    assert not any(span.failed for span in spans)
    check_nested(spans)
    assert found["decode"].attributes["mlxd.decode.tokens"] >= 3


def _workers_in(spans: list[Got]) -> list[Got]:
    return [span for span in spans if span.name == "worker"]


def _replayed(running: Daemon, got: Receiver) -> tuple[int, list[Got]]:
    """The worker that was killed, and the spans of its request."""
    for number in range(TRIES):
        id = f"replayed-{number}"
        ask(running, generate(ENDLESS, "warm", tokens=1))
        killed = workers_of(running)[ENDLESS]
        with speaking(running, id) as client, held(running, tokens=400, client=client) as stream:
            stream.read(4)
            os.kill(killed, signal.SIGKILL)
            assert stream.rest()[-1]["eval_count"] == 400
        spans = tree(got, id)
        if len(_workers_in(spans)) > 1:
            return killed, spans
    raise AssertionError("no replay has a span")


def test_a_request_whose_worker_dies_has_two(world: tuple[Daemon, Receiver]) -> None:
    killed, spans = _replayed(*world)
    first, second = _workers_in(spans)
    assert first.attributes["process.pid"] == killed != second.attributes["process.pid"]
    assert (first.failed, first.attributes["error.type"]) == (True, "SIGKILL")
    assert (second.failed, second.attributes["mlxd.worker.attempt"]) == (False, 2)
    ((name, told),) = second.events
    assert (name, told["mlxd.replay.reason"]) == ("replayed", "SIGKILL")
    decoded = [s.attributes["mlxd.decode.tokens"] for s in spans if s.name == "decode"]
    assert told["mlxd.replay.tokens"] == decoded[0] >= 4
    assert sum(decoded) == 400
    assert first.end <= second.start
    assert {s.parent for s in spans if s.name == "decode"} == {first.id, second.id}
    check_nested(spans)
    assert spans[0].attributes["mlxd.replays"] == 1


# -- receivers that are not well


@pytest.mark.slow
def test_a_receiver_that_hangs_costs_requests_nothing(start: Start) -> None:
    with receiver() as got:
        got.hangs.clear()
        running = start({"server": server_yaml(got.url)})
        ask_with(running, headers("first")).raise_for_status()
        began = time.monotonic()
        while not spans_total(running)["failed"]:
            ask_with(running, headers("meanwhile")).raise_for_status()
        assert time.monotonic() - began >= SECONDS - GATHER_SECONDS, "served while it hung"
        assert running.log_text().count("traces are not sent") == 1
        ask_with(running, headers("last")).raise_for_status()
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < SECONDS, "its end does not wait for it"


@pytest.mark.slow
def test_a_receiver_that_is_away_is_told_once(start: Start) -> None:
    running = start({"server": server_yaml(f"http://127.0.0.1:{free_port()}/private-path")})
    for _ in range(2):
        ask(running, generate("tiny-a", "x", tokens=3))
        before = spans_total(running)["failed"]
        eventually(lambda: spans_total(running)["failed"] > before, "spans are given up")  # noqa: B023
    text = running.log_text()
    assert text.count("traces are not sent") == 1
    assert "private-path" not in text
    assert "Traceback" not in text


# -- policy


@pytest.mark.slow
def test_an_edit_turns_it_on_and_off_and_what_waits_is_sent_at_the_end(start: Start) -> None:
    with receiver() as got:
        running = start({"server": ""})
        ask_with(running, headers("before"))
        generation = running.generation()
        running.edit("server", server_yaml(got.url, ", service: here"))
        generation = running.wait_for_generation(generation, 10)
        ask_with(running, headers("on"))
        assert tree(got, "on")[0].resource["service.name"] == "here"
        assert got.paths[0] == "/v1/traces"
        running.edit("server", server_yaml(got.url, ", sample: 0%"))
        generation = running.wait_for_generation(generation, 10)
        ask_with(running, headers("sampled-out"))
        ask_with(running, headers("parent", traceparent=f"00-{TRACE}-{PARENT}-01"))
        assert tree(got, "parent")
        running.edit("server", "page: true\n")
        generation = running.wait_for_generation(generation, 10)
        ask_with(running, headers("off"))
        running.edit("server", server_yaml(got.url))
        running.wait_for_generation(generation, 10)
        ask_with(running, headers("last"))
        running.stop()
        roots = [s.attributes["mlxd.request.id"] for s in got.spans if "http.route" in s.attributes]
        assert roots == ["on", "parent", "last"]


def test_without_the_packages_it_serves_and_says_so(start: Start, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "opentelemetry").mkdir(parents=True)
    (hidden / "opentelemetry" / "__init__.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])
    running = start({"server": server_yaml("http://127.0.0.1:9")}, environment={"PYTHONPATH": path})
    ask_with(running, headers("served")).raise_for_status()
    found = eventually(
        lambda: [one for one in running.health()["warnings"] if "mlxd[otel]" in one], "a warning"
    )
    assert "server.traces.endpoint" in found[0]
    ask_with(running, headers("again")).raise_for_status()
    assert running.log_text().count("traces are not sent") == 1
    assert spans_total(running)["dropped"] > 0
    idle(running)


@pytest.mark.slow
def test_nothing_of_it_is_imported_unless_it_is_wanted(start: Start) -> None:
    running = start()
    ask(running, generate("tiny-a", "x", tokens=2))
    maps = Path(f"/proc/{running.pid}/maps")
    if not maps.exists():
        pytest.skip("it cannot be seen here")
    assert "google/_upb" not in maps.read_text()
    assert json.dumps(spans_total(running)).count("0.0") == 3
