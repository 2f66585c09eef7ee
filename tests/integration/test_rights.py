"""A tenant with models of its own: what its lists show, and what it is told of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.integration.test_keys import new_key
from tests.support.daemon import Daemon, daemon, write_policies

pytestmark = pytest.mark.mlx

TENANTS = "tenants:\n  agents: {models: [tiny-a, second]}\n  nobody: {models: [none]}\n"
VERSION = {"anthropic-version": "2023-06-01"}
OTHER = "tiny-short"


@pytest.fixture(scope="module")
def apart(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """Clients of a daemon that has two models in memory, by their tenants; `anonymous`: any."""
    folder = tmp_path_factory.mktemp("apart")
    models = f"dirs: [{zoo}]\nmodels:\n  tiny-b: {{aliases: [second]}}\n"
    policies = {"clients": TENANTS, "models": models}
    write_policies(folder / "policies", policies)
    keys = {tenant: new_key(folder, tenant) for tenant in ("agents", "nobody")}
    with daemon(folder, models=zoo, policies=policies) as running:
        for model in ("tiny-a", OTHER):
            assert running.http.post("/api/generate", json={"model": model}).status_code == 200
        with ExitStack() as open_ones:
            own = {
                tenant: open_ones.enter_context(_at(running, key)) for tenant, key in keys.items()
            }
            yield {"anonymous": running.http} | own


def _at(running: Daemon, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=running.url, headers=headers, timeout=60)


def _names(client: httpx.Client, path: str, **headers: str) -> set[str]:
    told = client.get(path, headers=headers).json()
    names = {one.get("name") or one["id"] for one in told.get("models", told.get("data"))}
    return {name.removesuffix(":latest") for name in names}


@pytest.mark.parametrize("headers", [{}, VERSION], ids=["ollama and openai", "anthropic"])
def test_lists_show_what_a_tenant_may_use(
    apart: dict[str, httpx.Client], headers: dict[str, str]
) -> None:
    for path in ("/v1/models",) if headers else ("/api/tags", "/v1/models"):
        assert _names(apart["agents"], path, **headers) == {"tiny-a", "tiny-b"}
        assert _names(apart["nobody"], path, **headers) == set()
        assert {"tiny-a", "tiny-b", OTHER, "mlxd-guide"} <= _names(
            apart["anonymous"], path, **headers
        )


def test_the_root_names_no_others_either(apart: dict[str, httpx.Client]) -> None:
    own, all_of_them = (
        set(apart[who].get("/").json()["available_models"]) for who in ("agents", "anonymous")
    )
    assert own == {"tiny-a", "tiny-b"}
    assert {"tiny-a", "tiny-b", OTHER, "mlxd-guide"} <= all_of_them


def test_who_mistypes_a_name_is_told_of_no_other_model(apart: dict[str, httpx.Client]) -> None:
    """What is offered is not refused then."""
    for path in ("/api/show", "/api/generate"):
        own, anyone = (
            apart[who].post(path, json={"model": "tiny-shart"}).json()["error"]
            for who in ("agents", "anonymous")
        )
        assert "did you mean" in own
        assert OTHER not in own
        assert OTHER in anyone


def test_of_what_is_in_memory_too(apart: dict[str, httpx.Client]) -> None:
    assert _names(apart["agents"], "/api/ps") == {"tiny-a"}
    assert _names(apart["anonymous"], "/api/ps") >= {"tiny-a", OTHER}


def test_another_model_is_refused_to_whoever_looks_as_to_whoever_asks(
    apart: dict[str, httpx.Client],
) -> None:
    agents = apart["agents"]
    for name, status in (("tiny-a", 200), ("second", 200), (OTHER, 403), ("no-such", 404)):
        looks = [
            agents.get(f"/v1/models/{name}"),
            agents.get(f"/v1/models/{name}", headers=VERSION),
            agents.get(f"/api/models/{name}"),
            agents.post("/api/show", json={"model": name}),
            agents.post("/api/generate", json={"model": name}),
        ]
        assert [look.status_code for look in looks] == [status] * 5, name
        if status == 403:
            codes = {look.headers["x-mlxd-code"] for look in looks}
            assert codes == {"forbidden"}
            keys = {look.headers["x-mlxd-policy-key"] for look in looks}
            assert keys == {"clients.tenants.agents.models"}


def test_nobody_copies_replaces_or_removes_what_it_may_not_use(
    apart: dict[str, httpx.Client],
) -> None:
    """Else a copy under a name that it may use would be a way to any model."""
    agents, anyone = apart["agents"], apart["anonymous"]
    named = {"source": OTHER, "destination": "theirs"}
    assert anyone.post("/api/copy", json=named).status_code == 200
    deeds = [
        agents.post("/api/copy", json={"source": OTHER, "destination": "second-copy"}),
        agents.post("/api/copy", json={"source": "tiny-a", "destination": "theirs"}),
        agents.post("/api/create", json={"model": "mine", "from": OTHER, "system": "x"}),
        agents.post("/api/create", json={"model": "theirs", "from": "tiny-a", "system": "x"}),
        agents.post(
            "/api/create", json={"model": "theirs", "files": {"config.json": f"sha256:{'0' * 64}"}}
        ),
        agents.request("DELETE", "/api/delete", json={"model": "theirs"}),
        agents.post("/api/pull", json={"model": "theirs"}),
        agents.post("/api/push", json={"model": "theirs"}),
    ]
    assert [deed.status_code for deed in deeds] == [403] * 8
    keys = {deed.headers["x-mlxd-policy-key"] for deed in deeds}
    assert keys == {"clients.tenants.agents.models"}
    assert anyone.post("/api/pull", json={"model": "theirs"}).status_code == 200
    assert anyone.request("DELETE", "/api/delete", json={"model": "theirs"}).status_code == 200
    own = {"source": "tiny-a", "destination": "own"}
    assert agents.post("/api/copy", json=own).status_code == 200
    assert agents.request("DELETE", "/api/delete", json={"model": "own"}).status_code == 200
