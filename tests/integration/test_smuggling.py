"""What may be read in two ways (F19): the daemon refuses it, and has no request that a proxy before
it has not sent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from tests.integration.talking import drain, eventually
from tests.support.balancers import absent, haproxy, nginx
from tests.support.daemon import Daemon, daemon
from tests.support.smuggling import (
    Asked,
    Case,
    Log,
    answers_in,
    cases,
    haproxy_reuses,
    haproxy_says,
    lines_of,
    nginx_reuses,
    nginx_says,
    send,
    too_many,
)

CASES = cases()
BRIEF = (
    "http:\n"
    "  header_timeout: 500ms\n"
    "  body_idle_timeout: 500ms\n"
    "  body_total_timeout: 1s\n"
    "  keep_alive: 5s\n"
)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without models: none of this gets that far."""
    with daemon(tmp_path_factory.mktemp("direct"), policies={"server": BRIEF}) as running:
        yield running


def mark() -> str:
    """An id that nobody has had: a proxy may write a line when the next case has begun."""
    return f"fence-{token_hex(4)}"


def fence(port: int, id: str) -> None:
    """A request of somebody else, who gets his own answer."""
    asked = f"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {id}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(f"{asked}Connection: close\r\n\r\n".encode())
        [answer] = answers_in(drain(sock))
    assert (answer.status, answer.body, answer.id) == (200, b"ok\n", id)


def there(look: Callable[[], list[Asked] | None]) -> list[Asked]:
    """What a log has, once it is written."""
    [found] = eventually(lambda: [seen for seen in [look()] if seen is not None], "it is logged")
    return found


def test_each_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_daemon_reads_it_in_one_way(direct: Daemon, case: Case) -> None:
    log, end = Log(direct), mark()
    found = answers_in(send(direct.port, case.sent))
    fence(direct.port, end)
    seen = there(lambda: log.asked(end))
    assert ([answer.status for answer in found], seen) == (case.answers, case.seen)
    alive = [answer.id for answer in found].count("follows")
    assert alive == int(case.answers[-1] == 200 and len(case.answers) > len(case.seen))
    for answer in found:
        assert b"aiohttp" not in (answer.head + answer.body).lower()


def test_nothing_was_a_defect(direct: Daemon) -> None:
    for word in ("a defect", "Traceback", "/smuggled", "Unhandled"):
        assert word not in direct.log_text()


def test_a_trailer_is_no_header_of_the_next_request(direct: Daemon) -> None:
    """aiohttp's parser hands it on: whoever sends the next request would have it."""
    body = "2\r\n{}\r\n0\r\nHost: evil.example\r\nX-Request-Id: stolen\r\n\r\n"
    head = "POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    found = answers_in(send(direct.port, (head + body).encode()))
    assert [answer.status for answer in found] == [400]
    assert b"connection: close" in found[0].head.lower()


PROXIES = {
    "HAProxy as shipped": (haproxy, haproxy_says, "haproxy.out"),
    "HAProxy that uses connections again": (haproxy, haproxy_reuses, "haproxy.out"),
    "nginx as shipped": (nginx, nginx_says, "asked.log"),
    "nginx that uses connections again": (nginx, nginx_reuses, "asked.log"),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if "shipped" in name else [])
        for name in PROXIES
    ],
)
def behind(
    request: pytest.FixtureRequest, direct: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Path]]:
    """A proxy's port, and the file where it says what it passes on."""
    program, change, file = PROXIES[request.param]
    if reason := absent(program.__name__, "openssl"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("proxy")
    with program(folder, [direct.port] * 3, change(folder)) as balancer:
        yield balancer.port, folder / file


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_proxy_and_the_daemon_agree(behind: tuple[int, Path], direct: Daemon, case: Case) -> None:
    (port, file), end = behind, mark()
    log, passed_on = Log(direct), lines_of(file, end)
    send(port, case.sent, 2)
    fence(port, end)
    seen = there(lambda: log.asked(end))
    eventually(lambda: not too_many(seen, passed_on() or []), "nothing that nobody sent", 5)
