"""Tokens of a day: counted as clients see them, refused when used up, known to the next daemon."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.integration.talking import PATHS, Json, body_for, eventually, ndjson
from tests.support.daemon import Daemon, daemon

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
        with client_at(running, "127.0.0.9") as client:
            seen = _use_up(running, client)
            _is_refused(client, seen)
        with client_at(running, "127.0.0.10") as other:
            assert other.post("/api/generate", json=_asked(1)).status_code == 200
        kept = running.state / "usage.json"
        eventually(
            lambda: kept.exists() and f'"127.0.0.9":{seen}' in kept.read_text(),
            "the use is written",
            within=10,
        )
        running.stop(signal.SIGKILL)
    with daemon(tmp_path, models=zoo, policies=POLICIES) as again:
        with client_at(again, "127.0.0.9") as client, client_at(again, "127.0.0.11") as fresh:
            _is_refused(client, seen)
            assert fresh.post("/api/generate", json=_asked(1)).status_code == 200
        total = used_today(again)
        assert total > seen
        assert again.stop() == 0
        assert f'"anonymous":{total}' in kept.read_text()


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
