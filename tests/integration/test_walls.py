"""The walls before a request exists: timers, sizes, connection counts, Host and Origin."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import NO_LIMITS, Lend
from tests.integration.talking import (
    ENDLESS,
    Json,
    body_for,
    drain,
    eventually,
    exchange,
    generate,
    held,
    idle,
    one_answer,
    raw,
    say,
    unload,
)
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

HTTP = (
    "http:\n"
    "  header_timeout: 500ms\n"
    "  body_idle_timeout: 500ms\n"
    "  body_total_timeout: 1s\n"
    "  keep_alive: 700ms\n"
    "  max_body: 64KiB\n"
    "  max_connections: 24\n"
)
IMPATIENT = "client_write: 500ms\n"
HEAD = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\n"
CALM = 0.8
"""Seconds; a load takes longer. What /health is really to stay under, the benchmarks measure."""


@pytest.fixture(scope="module")
def walled(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with low walls."""
    folder = tmp_path_factory.mktemp("walled")
    policies = {"limits": NO_LIMITS, "server": HTTP, "timeouts": IMPATIENT}
    with daemon(folder, models=zoo, policies=policies) as running:
        yield running


def _error(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head.lower()
    return str(json.loads(body)["error"])


@pytest.mark.parametrize("sent", [b"", b"POST /api", HEAD, HEAD + b"X-Slow: "])
def test_a_header_that_does_not_come_is_408(walled: Daemon, sent: bytes) -> None:
    began = time.monotonic()
    answer = raw(walled, sent)
    assert answer.startswith(b"HTTP/1.1 408")
    assert _error(answer)
    assert 0.4 < time.monotonic() - began < 5


def test_a_header_that_drips_is_408_all_the_same(walled: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", walled.port), timeout=10) as sock:
        sock.sendall(HEAD)
        sock.settimeout(0.1)
        answer = b""
        deadline = time.monotonic() + 5
        while not answer and time.monotonic() < deadline:
            sock.sendall(b"X-A: b\r\n")
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_that_stops_coming_is_408(lend: Lend) -> None:
    running = lend({"server": "http: {body_idle_timeout: 500ms}\n"})
    answer = exchange(running, HEAD + b"Content-Length: 100\r\n\r\n", b'{"model": ')
    assert answer.startswith(b"HTTP/1.1 408")
    assert "server.http.body_idle_timeout" in _error(answer)


def test_a_body_that_drips_is_408_after_its_whole_time(lend: Lend) -> None:
    """Of two equal times the whole one is over first, however long a client is held up."""
    running = lend({"server": "http: {body_idle_timeout: 1s, body_total_timeout: 1s}\n"})
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as sock:
        sock.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        sock.settimeout(0.2)
        answer = b""
        deadline = time.monotonic() + 20
        while not answer and time.monotonic() < deadline:
            sock.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = one_answer(sock)
    assert answer.startswith(b"HTTP/1.1 408")
    assert "server.http.body_total_timeout" in _error(answer)


def test_an_idle_connection_is_closed_without_a_word(walled: Daemon) -> None:
    began = time.monotonic()
    answer = raw(walled, b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"ok\n")
    assert 0.5 < time.monotonic() - began < 5


def test_a_connection_is_reused(served: Daemon) -> None:
    ask = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
        for _ in range(20):
            sock.sendall(ask)
            assert b"200" in sock.recv(4096)


@pytest.mark.slow
def test_a_stream_outlasts_every_timer_of_the_walls(walled: Daemon) -> None:
    with held(walled, tokens=8192) as stream:
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            stream.read(20)
    idle(walled)


def test_one_address_has_its_share_of_connections_and_the_others_theirs(lend: Lend) -> None:
    running = lend({"server": "http: {per_ip: 3}\n"})
    ask = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def asked(address: str) -> tuple[socket.socket, bytes]:
        sock = stack.enter_context(
            socket.create_connection(("127.0.0.1", running.port), 5, (address, 0))
        )
        sock.sendall(ask)
        return sock, sock.recv(4096)

    with ExitStack() as stack:
        held = [asked("127.0.0.5") for _ in range(3)]
        assert all(answer.startswith(b"HTTP/1.1 200") for _, answer in held)
        sock, refused = asked("127.0.0.5")
        assert refused.startswith(b"HTTP/1.1 503")
        assert "server.http.per_ip" in _error(refused + drain(sock))
        assert asked("127.0.0.6")[1].startswith(b"HTTP/1.1 200")
        held[0][0].close()
        eventually(lambda: asked("127.0.0.5")[1].startswith(b"HTTP/1.1 200"), "there is room again")
        counted = stack.enter_context(httpx.Client(base_url=running.url)).get("/metrics").text
    refusals = re.search(r'mlxd_connections_refused_total\{policy="per_ip"\} (\d+)', counted)
    assert refusals is not None
    assert int(refusals[1]) >= 1


def test_clients_behind_a_trusted_proxy_have_their_share_of_requests(lend: Lend) -> None:
    running = lend({"server": "http: {per_ip: 1}\n", "clients": "trusted_proxies: [127.0.0.1]\n"})
    first, second = ({"X-Forwarded-For": f"203.0.113.{number}"} for number in (5, 6))
    with running.http.stream("GET", "/api/events", headers=first):
        refused = running.http.get("/api/version", headers=first)
        assert refused.status_code == 503
        assert "server.http.per_ip" in refused.text
        assert refused.headers["retry-after"]
        assert running.http.get("/api/version", headers=second).status_code == 200
        assert running.http.get("/livez").status_code == 200

    def again() -> bool:
        return running.http.get("/api/version", headers=first).status_code == 200

    eventually(again, "there is room again")


def _send_for_ever(sock: socket.socket, data: bytes) -> None:
    while True:
        sock.sendall(data)


def test_a_client_that_reads_nothing_loses_its_connection(walled: Daemon) -> None:
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(("127.0.0.1", walled.port))
        sock.settimeout(20)
        with pytest.raises(ConnectionError):
            _send_for_ever(sock, ask * 100)
    assert "a client reads nothing" in walled.log_text()


def test_a_stream_that_nobody_reads_is_cancelled(walled: Daemon) -> None:
    body = json.dumps(generate(ENDLESS, "x", tokens=8192) | {"logprobs": True, "top_logprobs": 20})
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(("127.0.0.1", walled.port))
        sock.sendall(head % len(body) + body.encode())
        eventually(lambda: walled.health()["active_requests"] == 1, "the stream runs")
        idle(walled, 30)


def test_a_client_that_expects_to_be_asked_is_asked(walled: Daemon) -> None:
    body = json.dumps({"model": "nobody", "prompt": "x"}).encode()
    head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    with socket.create_connection(("127.0.0.1", walled.port), timeout=10) as sock:
        sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert one_answer(sock).startswith(b"HTTP/1.1 404")
        sock.sendall(head + b"Content-Length: 70000\r\n\r\n")
        assert one_answer(sock).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(("path", "openais"), [("/api/generate", False), ("/v1/completions", True)])
def test_a_refusal_says_what_the_rate_limit_leaves(lend: Lend, path: str, openais: bool) -> None:
    limits = f"rate_limit: [{{name: of-{len(path)}, requests: 1, window: 1h}}]\n"
    daemon = lend({"limits": limits})
    body = body_for(path, "tiny-a", "x", tokens=1)
    first, second = (daemon.http.post(path, json=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 429)
    for answer in (first, second):
        assert "r=0;" in answer.headers["ratelimit"]
        assert "q=1;w=3600" in answer.headers["ratelimit-policy"]
        assert ("x-ratelimit-limit-requests" in answer.headers) is openais


def test_headers_that_are_too_long_together_are_431(walled: Daemon) -> None:
    many = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 1000) for n in range(20))
    answer = exchange(walled, HEAD + many + b"Content-Length: 2\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 431")
    assert "server.http.max_header_bytes" in _error(answer)


def test_a_path_cannot_forge_a_line_of_the_log(lend: Lend) -> None:
    daemon = lend({"server": "log: {format: text}\n"})
    daemon.http.get("/x%0A09:00:00 error FORGED")
    line = eventually(
        lambda: next((one for one in daemon.log_text().splitlines() if "FORGED" in one), ""),
        "the request is logged",
    )
    assert "GET /x" in line


def test_one_bad_folder_spoils_no_list(lend: Lend, zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "tiny-a").symlink_to(zoo / "tiny-a")
    for name, damage in ((b"big", {"hidden_size": "big"}), (b"\xff\xfe", {}), (b"ok\n", {})):
        shutil.copytree(zoo / "tiny-a", folder / os.fsdecode(name))
        file = folder / os.fsdecode(name) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    shutil.copytree(zoo / "tiny-a", folder / "huge")
    header = json.dumps({"w": {"dtype": "F16", "shape": [10**400]}}).encode()
    (folder / "huge" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    daemon = lend({"models": f"dirs: [{folder}]\n"})
    for path in ("/api/tags", "/", "/v1/models", "/health", "/api/ps"):
        assert daemon.http.get(path).status_code == 200, path
    names = [tag["name"] for tag in daemon.http.get("/api/tags").json()["models"]]
    assert {"tiny-a:latest", "big:latest", "\ufffd\ufffd:latest", "huge:latest"} <= set(names)


def test_a_body_over_its_size_is_413_by_its_length_alone(walled: Daemon) -> None:
    answer = exchange(walled, HEAD + b"Content-Length: 70000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    message = _error(answer)
    assert "server.http.max_body" in message
    assert "server.yaml:7" in message


def test_a_refused_body_does_not_keep_its_connection(walled: Daemon) -> None:
    began = time.monotonic()
    raw(walled, HEAD + b"Content-Length: 70000\r\n\r\n", b"x")
    assert time.monotonic() - began < 4


def test_a_chunked_body_over_its_size_is_413(walled: Daemon) -> None:
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    answer = exchange(walled, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 5)
    assert answer.startswith(b"HTTP/1.1 413")
    assert "server.http.max_body" in _error(answer)


def test_a_chunked_body_of_good_size_is_read(walled: Daemon) -> None:
    body = json.dumps(body_for("/api/chat", ENDLESS, "x", tokens=2)).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(walled, head + chunks + b"0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Content-Length: +2\r\n\r\n{}",
        HEAD + b"Host: other\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/chat HTTP/1.1\r\nHost : localhost\r\n\r\n",
        HEAD + b"X-Folded: a\r\n b\r\n\r\n",
        HEAD + b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(300)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HELP\r\n\r\n",
    ],
    ids=[
        "length and chunks", "two lengths", "a signed length", "two hosts", "a blank in a name",
        "a folded line", "a long header", "many headers", "tls", "no http",
    ],
)  # fmt: skip
def test_what_is_no_http_is_400_without_internals_and_closed(walled: Daemon, head: bytes) -> None:
    answer = raw(walled, head)
    assert answer.split(b" ")[1] in (b"400", b"431"), answer[:200]
    assert answer.count(b"HTTP/1.") == 1
    assert b"aiohttp" not in answer.lower()
    assert b"python" not in answer.lower()


GOOD_HOSTS = [
    "localhost", "localhost:11435", "127.0.0.1", "[::1]:11435", "mac.local", "a.b.localhost",
    "host.docker.internal", "192.168.1.7", "10.0.0.3:80", "0.0.0.0", "LOCALHOST",
]  # fmt: skip
BAD_HOSTS = ["evil.example", "localhost.evil.example", "8.8.8.8", "evil.example:11435", "local"]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_a_host_of_this_machine_or_its_containers_passes(served: Daemon, host: str) -> None:
    assert served.http.get("/api/version", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_foreign_host_is_403_and_does_nothing(served: Daemon, host: str) -> None:
    unload(served, "tiny-b")
    body = generate("tiny-b", "x", tokens=2)
    answer = served.http.post("/api/generate", json=body, headers={"Host": host})
    assert answer.status_code == 403
    assert "clients.hosts.allow" in answer.text
    assert "tiny-b" not in served.http.get("/api/ps").text


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil:80"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_page_of_a_foreign_origin_is_403(served: Daemon, method: str, origin: str) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    answer = served.http.request(method, "/api/chat", headers=headers, content=b"{}")
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "app://obsidian.md", "tauri://x"]
)
def test_an_allowed_origin_gets_its_headers_on_answers_streams_and_errors(
    served: Daemon, origin: str
) -> None:
    headers = {"Origin": origin}
    body = generate(ENDLESS, "x", tokens=2)
    answers = [
        served.http.get("/api/version", headers=headers),
        served.http.post("/api/generate", json=body, headers=headers),
        served.http.post("/api/generate", json={"model": "nobody"}, headers=headers),
    ]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == origin
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]


def test_credentials_are_for_pages_of_listed_origins_where_policy_allows_them(lend: Lend) -> None:
    running = lend(
        {"clients": "cors: {allow_origins: [https://chat.example], allow_credentials: true}\n"}
    )
    page = {"Origin": "https://chat.example"}
    name = "access-control-allow-credentials"
    for method, path in (("GET", "/api/version"), ("OPTIONS", "/api/chat"), ("POST", "/api/chat")):
        assert running.http.request(method, path, headers=page).headers[name] == "true"
    running.edit(
        "clients",
        "cors: {allow_origins: [https://chat.example], allow_credentials: true, mode: 'off'}\n",
    )
    running.reload()
    assert name in running.http.get("/api/version", headers=page).headers
    stranger = running.http.get("/api/version", headers={"Origin": "https://evil.example"})
    assert stranger.headers["access-control-allow-origin"] == "https://evil.example"
    assert name not in stranger.headers
    running.edit("clients", "cors: {allow_origins: [https://chat.example]}\n")
    running.reload()
    assert name not in running.http.get("/api/version", headers=page).headers


def test_a_preflight_is_204_with_methods_and_headers(served: Daemon) -> None:
    headers = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-stainless-os",
    }
    answer = served.http.options("/v1/chat/completions", headers=headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"].lower()


def _worst(daemon: Daemon, samples: int) -> float:
    """The second-longest of some answers of /health: one may fall to a busy machine."""
    times = []
    for _ in range(samples):
        began = time.monotonic()
        daemon.health()
        times.append(time.monotonic() - began)
    return sorted(times)[-2]


def test_health_answers_while_a_model_loads(served: Daemon) -> None:
    unload(served, "tiny-b")
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(say, served, "tiny-b", "x", tokens=1)
        eventually(lambda: served.health()["loading_models"] == ["tiny-b"], "tiny-b loads")
        worst = _worst(served, 50)
        load.result()
    assert worst < CALM


def test_health_answers_while_eight_streams_run(served: Daemon) -> None:
    bodies: list[Json] = [generate(ENDLESS, f"run {n}", tokens=8192) for n in range(8)]
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        streams = [stack.enter_context(held(served, prompt=str(body["prompt"]))) for body in bodies]
        reading = [pool.submit(stream.read, 150) for stream in streams]
        worst = _worst(served, 60)
        for run in reading:
            run.result()
    assert worst < CALM
    idle(served)
