"""What clients send forges no line of a log, breaks no metric, moves no cursor, and makes no series
of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlxd.core.lines import one_line
from tests.integration.conftest import NO_LIMITS
from tests.integration.talking import eventually, raw
from tests.support import command
from tests.support.daemon import Daemon, daemon
from tests.support.long import short

pytestmark = pytest.mark.mlx

FORGED = '{"level": "error", "message": "FORGED"}'
ODD = {
    "line breaks": f"a\r\n{FORGED}\r\n",
    "other line breaks": f"a\u2028{FORGED}\u2029\x85\x0b\x0c\x1c",
    "a terminal": "\x1b[2J\x1b]0;FORGED\x07\x9b2J",
    "quotes": f'a",mlxd_forged="1"}} 1\n{FORGED}\\',
    "directions": "\u202eFORGED\u2066",
    "length": "x" * 5000,
}
SEVERAL = 20
JSON = {"Content-Type": "application/json"}
COMMANDS = (
    ("status",), ("status", "--json"), ("events",), ("events", "--json"), ("explain",),
    ("explain", "--json"), ("crashes",), ("crashes", "--json"), ("models", "list"),
    ("policy", "explain", "clients"),
)  # fmt: skip
LOG_STYLES = ("json", "text")


@pytest.fixture(scope="module", params=short(LOG_STYLES, "json"))
def spoken(
    request: pytest.FixtureRequest, zoo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon that was told all that, in every place where something can be told."""
    folder = tmp_path_factory.mktemp("spoken")
    policies = {
        "server": f"log: {{format: {request.param}, level: debug}}\n",
        "limits": NO_LIMITS.replace("max_in_flight: 64", "max_in_flight: 1, max_waiting: 0"),
    }
    with daemon(folder, models=zoo, policies=policies) as running:
        for text in ODD.values():
            say_everywhere(running, text)
        yield running


def say_everywhere(running: Daemon, text: str) -> None:
    """In bodies, and as far as HTTP carries it in headers, paths and methods."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/api/generate", {"model": text, "prompt": text}),
        ("/api/generate", {"model": "tiny-a", "prompt": text, "options": {"num_predict": 1}}),
        ("/v1/chat/completions", {"model": "tiny-a", "user": text, "max_tokens": 1,
                                  "messages": [{"role": "user", "content": text}]}),
        ("/v1/messages", {"model": text, "max_tokens": 1, "messages": []}),
        ("/api/copy", {"source": "tiny-a", "destination": text}),
        ("/api/copy", {"source": text, "destination": "b"}),
        ("/api/create", {"model": text, "from": "tiny-a", "system": text}),
        ("/api/delete", {"model": text}),
        ("/api/pull", {"model": text}),
    ]  # fmt: skip
    for path, body in bodies:
        running.http.request("DELETE" if "delete" in path else "POST", path, json=body)
    quoted = "".join(f"%{byte:02x}" for byte in text[:600].encode())
    for path in ("/", "/v1/models/", "/api/blobs/", "/v1/responses/"):
        running.http.get(f"{path}{quoted}?{quoted}")
    flat = text[:600].replace("\r", " ").replace("\n", " ").encode()
    ask = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    asked = b'{"model": "tiny-a", "prompt": "x", "options": {"num_predict": 1}}'
    for name in (b"User-Agent", b"X-Request-Id", b"X-Request-Priority", b"X-Forwarded-For"):
        head = ask + name + b": " + flat + b"\r\nContent-Length: %d\r\n\r\n" % len(asked)
        raw(running, head + asked)
    for target in (b"/" + text[:600].encode(), b"/" + flat):
        raw(
            running, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
    raw(running, flat + b" / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    raw(running, b"M" * 3000 + b" / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


def is_bare(text: str) -> bool:
    """No line of it holds what moves a cursor, or breaks a line for whoever counts otherwise."""
    return all(one_line(line) == line for line in text.split("\n"))


def test_each_line_of_the_log_is_one(spoken: Daemon) -> None:
    log = spoken.log_text()
    assert is_bare(log)
    assert max(map(len, log.split("\n"))) < 2000
    for line in filter(None, log.split("\n")):
        if line.startswith("{"):
            assert json.loads(line)["message"] != "FORGED"
        else:
            assert re.match(r"\d\d:\d\d:\d\d (debug|info|warning|error) |  ", line), line


def test_metrics_stay_what_prometheus_reads(spoken: Daemon) -> None:
    text = spoken.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["mlxd_policy_generation"].samples
    assert "FORGED" not in text
    assert "forged" not in text
    assert is_bare(text)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_shows_what_a_terminal_would_act_on(
    spoken: Daemon, words: tuple[str, ...]
) -> None:
    done = command.mlxd(*words, "--policies", spoken.policies, "--state", spoken.state)
    assert is_bare(done.stdout)
    assert is_bare(done.stderr)
    if "--json" in words:
        for line in done.stdout.splitlines():
            json.loads(line)


def test_answers_are_json_and_headers_are_their_own(spoken: Daemon) -> None:
    for text in ODD.values():
        answer = spoken.http.post("/api/generate", json={"model": text, "prompt": "x"})
        assert answer.status_code == 404
        assert isinstance(answer.json()["error"], str)
        assert "FORGED" not in str(answer.headers)


def test_however_many_names_clients_have_there_are_no_more_series(spoken: Daemon) -> None:
    def series() -> int:
        text = spoken.http.get("/metrics").text
        return sum(not line.startswith("#") for line in text.splitlines())

    def ask(number: int) -> None:
        headers = {"User-Agent": f"agent-{number}", "X-Request-Id": f"id-{number}"}
        headers |= {"Authorization": f"Bearer key-{number}", "X-Tenant": f"tenant-{number}"}
        body: dict[str, Any] = {
            "model": f"nobody-{number}",
            "prompt": "x",
            "user": f"user-{number}",
        }
        spoken.http.post("/api/generate", json=body, headers=headers)
        body["model"] = "tiny-a"
        body["options"] = {"num_predict": 1}
        spoken.http.post("/api/generate", json=body, headers=headers)
        spoken.http.request(f"M{number}", f"/path-{number}", headers=headers)

    ask(0)
    eventually(lambda: spoken.health()["active_requests"] == 0, "it is idle")
    before = series()
    for number in range(1, SEVERAL):
        ask(number)
    assert series() - before < 10
