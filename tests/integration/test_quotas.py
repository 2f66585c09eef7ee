"""Who is counted by what, and the tokens of a day: as clients see them, over restarts."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.talking import PATHS, Json, body_for, eventually, ndjson
from tests.integration.test_keys import new_key
from tests.support.daemon import Daemon, daemon, write_policies

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(
        sys.platform != "linux", reason="needs the whole of 127.0.0.0/8 for clients of their own"
    ),
]

POLICIES = {
    "limits": "rate_limit: []\n",
    "clients": "tenants:\n  anonymous: {daily_tokens: 120}\n",
}


def client_at(running: Daemon, address: str) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=running.url, transport=transport, timeout=60)


def took(path: str, answer: httpx.Response) -> int:
    """Prompt and answer, as the client is told them."""
    said: Json = answer.json()
    if path.startswith("/api/"):
        return int(said["prompt_eval_count"] + said["eval_count"])
    return int(said["usage"]["total_tokens"])


def used_today(running: Daemon) -> int:
    tenants = running.admin.get("/admin/usage")["tenants"]
    return int(next(one["tokens_today"] for one in tenants if one["tenant"] == "anonymous"))


def test_a_days_tokens_are_those_that_clients_saw_and_outlive_the_daemon(
    zoo: Path, tmp_path: Path
) -> None:
    with daemon(tmp_path, models=zoo, policies=POLICIES) as running:
        kept = running.state / "usage.json"
        kept.mkdir()  # nothing can be written there for now
        with client_at(running, "127.0.0.9") as client:
            seen = _use_up(running, client)
            _is_refused(client, seen)
        with client_at(running, "127.0.0.10") as other:
            assert other.post("/api/generate", json=_asked(1)).status_code == 200
        eventually(lambda: _forgetful(running), "that it is not written is said", within=10)
        kept.rmdir()
        eventually(
            lambda: kept.exists() and f'"127.0.0.9":{seen}' in kept.read_text(),
            "the use is written",
            within=10,
        )
        eventually(lambda: not _forgetful(running), "nothing more is said of it")
        running.stop(signal.SIGKILL)
    with daemon(tmp_path, models=zoo, policies=POLICIES) as again:
        with client_at(again, "127.0.0.9") as client, client_at(again, "127.0.0.11") as fresh:
            _is_refused(client, seen)
            assert fresh.post("/api/generate", json=_asked(1)).status_code == 200
        total = used_today(again)
        assert total > seen
        assert again.stop() == 0
        assert f'"anonymous":{total}' in kept.read_text()


def _forgetful(running: Daemon) -> bool:
    """Whether /health says that a restart would forget what was used."""
    return any("would forget" in warning for warning in running.health()["warnings"])


def _asked(tokens: int) -> Json:
    return body_for("/api/generate", "tiny-a", "count me", tokens=tokens)


def _use_up(running: Daemon, client: httpx.Client) -> int:
    """All of a day's tokens; returns how many the client saw."""
    seen = 0
    for path in PATHS:
        answer = client.post(path, json=body_for(path, "tiny-a", "count me", tokens=3))
        assert answer.status_code == 200
        seen += took(path, answer)
        assert used_today(running) == seen
        assert 'q=120;w=86400;qu="tokens"' in answer.headers["ratelimit-policy"]
    last = ndjson(client.post("/api/generate", json=_asked(3) | {"stream": True}))[-1]
    seen += last["prompt_eval_count"] + last["eval_count"]
    assert used_today(running) == seen < 120
    seen += took("/api/generate", client.post("/api/generate", json=_asked(100)))  # it is not cut
    assert used_today(running) == seen > 120
    kinds = re.findall(
        r'^mlxd_tenant_tokens_total\{kind="(\w+)",tenant="anonymous"\} (\S+)$',
        client.get("/metrics").text,
        re.MULTILINE,
    )
    assert {kind for kind, _ in kinds} == {"prompt", "completion"}
    assert sum(float(tokens) for _, tokens in kinds) == seen
    return seen


def _is_refused(client: httpx.Client, used: int) -> None:
    for path in ("/api/generate", "/v1/chat/completions"):
        refused = client.post(path, json=body_for(path, "tiny-a", "more", tokens=3))
        assert refused.status_code == 429
        assert refused.headers["x-mlxd-code"] == "tokens_exhausted"
        assert refused.headers["x-mlxd-policy-key"] == "clients.tenants.anonymous.daily_tokens"
        assert "clients.yaml:3" in refused.headers["x-mlxd-policy-place"]
        assert f"Token quota used up. {used} of 120 tokens per day (UTC)" in refused.text
        assert "r=0;" in refused.headers["ratelimit"]
        assert int(refused.headers["retry-after"]) >= 1
        openais = path.startswith("/v1/")
        assert refused.headers.get("x-ratelimit-remaining-tokens") == ("0" if openais else None)
    assert client.get("/health").status_code == 200


BY_KIND = {
    "limits": (
        "rate_limit:\n"
        "  - {name: team, key: 'header:X-Team', requests: 2, window: 1h}\n"
        "  - {name: user, key: user, requests: 2, window: 1h, algorithm: token_bucket}\n"
    ),
    "clients": "tenants:\n  agents: {requests: 3, window: 1h, tokens: 100000}\n",
}


@pytest.fixture(scope="module")
def counted(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    """A daemon that counts by kind, and a key of the tenant `agents`."""
    folder = tmp_path_factory.mktemp("counted")
    write_policies(folder / "policies", BY_KIND)
    key = new_key(folder)
    with daemon(folder, models=zoo, policies=BY_KIND) as running:
        yield running, key


def _refused_by(answer: httpx.Response, key: str, rule: str, kept_secret: str) -> None:
    assert answer.status_code == 429
    assert answer.headers["x-mlxd-code"] == "rate_limited"
    assert answer.headers["x-mlxd-policy-key"] == key
    assert f'"{rule}";r=0;t=' in answer.headers["ratelimit"]
    assert kept_secret not in answer.text + str(answer.headers)


def test_a_rule_counts_by_a_header(counted: tuple[Daemon, str]) -> None:
    running, _ = counted
    for team, statuses in (("r3d", [200, 200, 429]), ("blu3", [200])):
        answers = [
            running.http.post("/api/generate", json=_asked(1), headers={"X-Team": team})
            for _ in statuses
        ]
        assert [answer.status_code for answer in answers] == statuses
        if len(answers) > 2:
            _refused_by(answers[2], "limits.rate_limit[0].requests", "team", team)
    for _ in range(3):
        answer = running.http.post("/api/generate", json=_asked(1))
        assert answer.status_code == 200
        assert '"team"' not in answer.headers.get("ratelimit", "")


def test_a_rule_counts_by_who_the_request_is_for(counted: tuple[Daemon, str]) -> None:
    running, _ = counted
    path = "/v1/chat/completions"
    body = body_for(path, "tiny-a", "count me", tokens=1)
    answers = [running.http.post(path, json=body | {"user": "ann33"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    _refused_by(answers[2], "limits.rate_limit[1].requests", "user", "ann33")
    assert running.http.post(path, json=body | {"user": "bob"}).status_code == 200
    assert running.http.post(path, json=body).status_code == 200


def test_a_tenant_is_counted_by_its_key_and_told_of_its_tokens(counted: tuple[Daemon, str]) -> None:
    running, key = counted
    path = "/v1/chat/completions"
    body = body_for(path, "tiny-a", "count me", tokens=1)
    headers = {"Authorization": f"Bearer {key}"}
    answers = [running.http.post(path, json=body, headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    _refused_by(answers[3], "clients.tenants.agents.requests", "tenant:agents", key)
    seen = sum(took(path, answer) for answer in answers[:3])
    assert int(answers[3].headers["x-ratelimit-remaining-tokens"]) == 100_000 - seen
    told = running.admin.get("/admin/usage")
    (agents,) = (one for one in told["tenants"] if one["tenant"] == "agents")
    assert (agents["tokens_today"], agents["tokens_in_window"]) == (seen, seen)
    assert agents["limits"]["requests"] == 3
