"""Three daemons behind HAProxy and nginx, with the files of etc/: what a drain, a kill and a move
of one of them cost the clients (F29).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from tests.integration.talking import Held, Json, eventually, held
from tests.support.balancers import (
    SERVERS,
    Balancer,
    absent,
    haproxy,
    haproxy_config,
    nginx,
    program_at,
)
from tests.support.callers import Callers, calling
from tests.support.daemon import Daemon, free_port
from tests.support.fleet import PACED, Fleet, fleet, question

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(bool(absent("openssl")), reason=absent("openssl")),
]

SHORT = question(1, stream=False)
LONG = 400
"""Tokens of a stream that is still under way when something happens to its daemon."""
PROGRAMS = {"haproxy": haproxy, "nginx": nginx}
Front = Callable[[str], Balancer]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Daemons with a small model. Those that a test has ended are there again for the next."""
    with fleet(tmp_path_factory.mktemp("fleet"), len(SERVERS)) as made:
        yield made


@pytest.fixture
def daemons(three: Fleet) -> list[Daemon]:
    return three.complete()


@pytest.fixture
def front(daemons: list[Daemon], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Start a balancer in front of the three: `front("nginx")`."""
    with ExitStack() as stack:

        def start(program: str) -> Balancer:
            if reason := absent(program):
                pytest.skip(reason)
            folder = tmp_path_factory.mktemp("lb")
            made = PROGRAMS[program](folder, [one.port for one in daemons])
            return stack.enter_context(made)

        yield start


def client_of(balancer: Balancer) -> httpx.Client:
    return httpx.Client(base_url=balancer.url, timeout=60)


def streams_by(
    balancers: Sequence[Balancer], stack: ExitStack, daemons: list[Daemon]
) -> list[Held]:
    """Three by each that have begun: one on each daemon, since each goes where the fewest are."""
    clients = [stack.enter_context(client_of(balancer)) for balancer in balancers]
    found = [
        stack.enter_context(held(daemons[0], PACED, tokens=LONG, client=client))
        for client in clients
        for _ in SERVERS
    ]
    assert [active([one]) for one in daemons] == [len(balancers)] * len(SERVERS)
    return found


def whole(stream: Held) -> bool:
    """Whether it reached its end. One that is cut must not look as if it had."""
    try:
        last = stream.rest()[-1]
    except httpx.TransportError:
        assert not any(record.get("done") for record in stream.records)
        return False
    assert (last["done"], last["eval_count"]) == (True, LONG), last
    return True


def more_answers(callers: Callers, count: int) -> None:
    wanted = callers.answers + count
    eventually(lambda: callers.answers >= wanted, f"{count} more answers", within=60)


def test_an_administrator_drains_a_daemon_by_haproxys_socket(
    front: Front, daemons: list[Daemon]
) -> None:
    balancer = front("haproxy")
    for name in SERVERS[1:]:
        balancer.say(f"set server mlxd/{name} state drain")
    served = pid_that_answers(balancer)
    assert served == {daemons[0].pid}
    balancer.say("set server mlxd/two state ready")
    balancer.say("set server mlxd/one state drain")
    assert pid_that_answers(balancer) == {daemons[1].pid}


def pid_that_answers(balancer: Balancer) -> set[int]:
    with client_of(balancer) as client:
        return {health_by(client)["pid"] for _ in range(6)}


def health_by(client: httpx.Client) -> Json:
    """On a loaded machine HAProxy may close a first connection without a word."""
    for _ in range(2):
        with suppress(httpx.RemoteProtocolError):
            return dict(client.get("/health").json())
    return dict(client.get("/health").json())


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_balancer_passes_on(program: str, front: Front, daemons: list[Daemon]) -> None:
    balancer = front(program)
    with client_of(balancer) as client:
        deleting = client.request("DELETE", "/api/delete", json={"model": "no-such"})
        assert deleting.status_code == 403, "whoever is behind a balancer is not this machine"
        assert deleting.headers["x-mlxd-policy-key"] == "clients.manage_models"
        long = client.post("/api/generate", json=SHORT | {"prompt": "x" * 100_000})
        assert long.status_code == 400
        assert long.headers["x-mlxd-code"] == "context_exceeded"
        too_long = client.post("/api/generate", content=b"x" * (9 << 20))
        assert too_long.status_code == 413
        assert "x-mlxd-code" not in too_long.headers, "it went to a daemon"
        pieces = [second_piece(client) for _ in range(3)]
        assert min(pieces) < 1000, "records are held back"
    asked = json.dumps(question(8192, stream=False)).encode()
    with socket.create_connection(("127.0.0.1", balancer.port)) as waiting:
        head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        waiting.sendall(head % len(asked) + asked)
        eventually(lambda: active(daemons) == 1, "it runs")
    eventually(lambda: active(daemons) == 0, "who hangs up frees the slot")


def second_piece(client: httpx.Client) -> int:
    """How many bytes of a stream come at once, behind what comes with the header. On a busy machine
    they may be many now and then.
    """
    with client.stream("POST", "/api/generate", json=question(200, stream=True)) as response:
        pieces = response.iter_raw()
        next(pieces)
        return len(next(pieces))


def active(daemons: list[Daemon]) -> int:
    return sum(int(one.health()["active_requests"]) for one in daemons)


@pytest.mark.skipif(bool(absent("curl")), reason=absent("curl"))
@pytest.mark.parametrize("program", PROGRAMS)
def test_tls_and_http_2_to_clients(program: str, front: Front) -> None:
    balancer = front(program)
    asked = json.dumps(question(3, stream=True))
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--data", asked]
    command += ["--cacert", str(balancer.folder / "mlxd.crt"), "--write-out", "%{http_version}"]
    command += [f"https://localhost:{balancer.tls_port}/api/generate"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    *records, version = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert version == "2"
    assert json.loads(records[-1])["eval_count"] == 3


@pytest.mark.skipif(bool(absent("haproxy")), reason=absent("haproxy"))
def test_the_examples_in_haproxys_file_are_valid(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    text = haproxy_config(tmp_path, [1, 2, 3], 4, 5, optional=True)
    assert "balance hash var(txn.model)" in [line.strip() for line in text.splitlines()]
    file.write_text(text)
    command = [str(program_at("haproxy")), "-c", "-dW", "-f", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_daemon_moves_to_another_port_behind_haproxy(
    front: Front, three: Fleet, daemons: list[Daemon]
) -> None:
    balancer, port = front("haproxy"), free_port()
    with ExitStack() as stack:
        streams = streams_by([balancer], stack, daemons)
        callers = stack.enter_context(calling([balancer.port], SHORT, each=2))
        more_answers(callers, 2)
        three.move(0, port)
        told = balancer.say(f"set server mlxd/one addr 127.0.0.1 port {port}")
        assert f"to '{port}'" in told, told
        eventually(lambda: daemons[0].address().port == port, "it says where it is")
        daemons[0].follow()
        assert all(whole(stream) for stream in streams)
        for other in SERVERS[1:]:
            balancer.say(f"set server mlxd/{other} state drain")
        more_answers(callers, 10)
    assert callers.failures == []


def test_a_daemon_that_drains_costs_no_request(front: Front, daemons: list[Daemon]) -> None:
    balancers = [front(program) for program in PROGRAMS]
    with ExitStack() as stack:
        streams = streams_by(balancers, stack, daemons)
        with calling([one.port for one in balancers], SHORT, each=2) as callers:
            more_answers(callers, 4)
            daemons[0].process.send_signal(signal.SIGTERM)
            assert all(whole(stream) for stream in streams)
            assert daemons[0].process.wait(60) == 0
            more_answers(callers, 20)
    assert callers.failures == []


def test_a_daemon_that_is_killed_breaks_only_what_ran_on_it(
    front: Front, daemons: list[Daemon]
) -> None:
    balancers = [front(program) for program in PROGRAMS]
    with ExitStack() as stack:
        streams = streams_by(balancers, stack, daemons)
        with calling([one.port for one in balancers], SHORT, each=2) as callers:
            more_answers(callers, 4)
            daemons[0].process.kill()
            daemons[0].process.wait(10)
            killed = time.monotonic()
            more_answers(callers, 40)
        ended = [whole(stream) for stream in streams]
    assert ended.count(False) == len(balancers), "one by each ran on it"
    late = [failure for failure in callers.failures if failure.began > killed]
    assert late == [], "it came when the daemon was gone already"
    assert len(callers.failures) <= 4, "one for each caller"
