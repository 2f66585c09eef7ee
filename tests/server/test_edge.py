import errno
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mlxd.core.errors import Forbidden, HeadersTooLarge
from mlxd.core.story import untold
from mlxd.core.threads import NoThread
from mlxd.policy.load import Override, load
from mlxd.server.app import routes
from mlxd.server.edge import (
    BELOW,
    ID,
    MARKS,
    POLICIES,
    STORY,
    Edge,
    Marks,
    _pass_walls,
    common_headers,
    path_of,
)
from mlxd.server.errors import in_ollama
from mlxd.server.parts import Parts


def asked(*overrides, **headers):
    """A request with these headers, under these policies."""
    policies = load(None, [Override(key, text, "a test") for key, text in overrides])
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = make_mocked_request("GET", "/", headers=names)
    request[ID] = "1"
    request[POLICIES] = policies
    request[MARKS] = Marks(lambda _: None)
    request[STORY] = untold()
    return request


@pytest.mark.parametrize("host", ["localhost", "foo.localhost", "::ffff:127.0.0.1", "127.8.8.8"])
def test_the_host_is_checked_wherever_policy_says_loopback(host):
    with pytest.raises(Forbidden):
        _pass_walls(asked(("server.listen.host", host), Host="evil.example"))


@pytest.mark.parametrize(("mode", "marks"), [("dry_run", ["hosts"]), ("off", [])])
def test_a_host_that_would_be_refused_is_marked_in_a_dry_run_only(mode, marks):
    request = asked(("clients.hosts.mode", mode), Host="evil.example")
    _pass_walls(request)
    assert request[MARKS].rules == marks
    assert common_headers(request).get("X-Mlxd-Would-Deny", "") == ", ".join(marks)


@pytest.mark.parametrize(("mode", "marks"), [("dry_run", ["cors"]), ("off", [])])
def test_an_origin_that_would_be_refused_may_ask_in_a_dry_run(mode, marks):
    request = asked(("clients.cors.mode", mode), Origin="https://evil.example")
    _pass_walls(request)
    assert request[MARKS].rules == marks
    assert common_headers(request)["Access-Control-Allow-Origin"] == "https://evil.example"


def test_an_allowed_origin_is_not_marked():
    request = asked(("clients.cors.mode", "dry_run"), Origin="http://localhost:3000")
    _pass_walls(request)
    assert request[MARKS].rules == []


def test_a_page_reads_every_header_that_is_documented():
    shown = common_headers(asked_by_a_page())["Access-Control-Expose-Headers"].lower().split(", ")
    text = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text()
    named = re.findall(r"`((?:X-|x-ratelimit-|RateLimit|Retry-After|Request-Id)[\w-]*)", text)
    assert len(named) > 10
    assert {name.lower() for name in named} <= set(shown)


def asked_by_a_page():
    request = asked(Origin="http://localhost:3000")
    _pass_walls(request)
    return request


def test_what_clients_put_into_paths_is_not_logged():
    assert path_of("/api/user/keys/sk-1") == "/api/user/keys/*"
    assert path_of("/v1/models/a secret") == "/v1/models/*"
    assert path_of("/api/tags") == "/api/tags"
    assert len(path_of("/" + "x" * 9000)) == 200


def test_every_path_with_something_of_clients_is_known():
    below = set(routes(cast("Parts", None))._below)
    assert below == set(BELOW)


def test_headers_are_measured_together():
    limit = ("server.http.max_header_bytes", "1KiB")
    _pass_walls(asked(limit, **{f"X_{n}": "x" * 100 for n in range(5)}))
    with pytest.raises(HeadersTooLarge, match="larger than 1024 bytes"):
        _pass_walls(asked(limit, **{f"X_{n}": "x" * 100 for n in range(10)}))


class OutOfMemory:
    """An endpoint for which there is no memory."""

    render_error = staticmethod(in_ollama)

    async def __call__(self, request):
        raise MemoryError


class Guard:
    def __init__(self):
        self.emergencies = []

    def emergency(self, why):
        self.emergencies.append(why)


async def test_no_memory_for_a_request_is_a_503_and_an_emergency():
    guard = Guard()
    endpoint = OutOfMemory()
    edge = Edge(cast("Parts", SimpleNamespace(guard=guard)), lambda *_: endpoint, walls=False)
    answer = await edge._answer(asked(Host="localhost"))
    assert answer.status == 503
    assert answer.headers["X-Mlxd-Code"] == "insufficient_memory"
    assert answer.headers["Retry-After"] == "10"
    assert guard.emergencies == ["the daemon found no memory for a request"]


class Fails:
    """An endpoint that something is missing for."""

    render_error = staticmethod(in_ollama)

    def __init__(self, error):
        self._error = error

    async def __call__(self, request):
        raise self._error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoThread(), "the system has no thread for this request"),
        (OSError(errno.EMFILE, "Too many open files"), "the daemon has too many files open"),
        (OSError(errno.ENFILE, "Too many open files"), "the daemon has too many files open"),
    ],
)
async def test_what_the_system_has_run_out_of_is_no_defect(error, words):
    edge = Edge(cast("Parts", SimpleNamespace()), lambda *_: Fails(error), walls=False)
    answer = await edge._answer(asked(Host="localhost"))
    assert (answer.status, answer.headers["X-Mlxd-Code"]) == (503, "overloaded")
    assert answer.headers["Retry-After"] == "1"
    assert isinstance(answer, web.Response)
    assert words in str(answer.text)


@pytest.mark.parametrize("change", ["mlxd's files have been removed; restart the daemon", ""])
@pytest.mark.parametrize("error", [ImportError("no shapes"), FileNotFoundError("builds.yaml")])
async def test_what_an_upgrade_has_taken_away_is_said(error, change):
    parts = SimpleNamespace(installed=SimpleNamespace(change=lambda: change))
    edge = Edge(cast("Parts", parts), lambda *_: Fails(error), walls=False)
    answer = await edge._answer(asked(Host="localhost"))
    assert answer.status == (503 if change else 500)
    assert isinstance(answer, web.Response)
    assert change in str(answer.text)


def test_an_answer_names_the_generation_it_was_given_under():
    assert common_headers(asked())["X-Mlxd-Policy"] == "1"
