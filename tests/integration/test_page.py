"""What the page is served and told by a real daemon, and who may administer over TCP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mlxd.server.page.assets import STATIC
from tests.integration.conftest import Lend, Start
from tests.integration.talking import ENDLESS, eventually, held
from tests.integration.test_keys import new_key
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

ADMIN = "tenants: {ops: {admin: true}}\n"
STRICT = {
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'",
    "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
}  # fmt: skip


@pytest.fixture
def page(served: Daemon) -> Iterator[httpx.Client]:
    """A browser on this machine, as far as the daemon can see."""
    headers = {"Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=30) as client:
        client.headers["X-Mlxd-Page"] = client.get("/ui/session").json()["token"]
        yield client


def test_every_file_of_it_is_served_with_strict_headers(served: Daemon) -> None:
    paths = [f"/ui/assets/{file.relative_to(STATIC).as_posix()}" for file in STATIC.rglob("*.*")]
    assert len(paths) > 10
    for path in ("/ui", *paths):
        answer = served.http.get(path)
        assert answer.status_code == 200, path
        assert set(answer.headers["Content-Security-Policy"].split("; ")) >= STRICT
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Content-Type"].startswith(("text/", "image/svg+xml"))
        known = served.http.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (known.status_code, known.content) == (304, b"")


def test_it_names_nothing_elsewhere_and_has_no_script_inside(served: Daemon) -> None:
    text = served.http.get("/ui").text
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)
    assert not re.search(r"<script(?![^>]*src)|<style| style=| on\w+=", text)


def test_what_is_no_file_of_it_is_404(served: Daemon) -> None:
    for path in ("/ui/assets/", "/ui/assets/nothing.js", "/ui/assets/../session.py", "/ui/x"):
        assert served.http.get(path).status_code == 404, path


def test_a_slash_too_many_leads_to_it(served: Daemon) -> None:
    answer = served.http.get("/ui/")
    assert answer.status_code == 308
    assert answer.next_request is not None
    assert answer.next_request.url.path == "/ui"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
    ],
)
def test_no_other_page_learns_the_token(served: Daemon, headers: dict[str, str]) -> None:
    answer = served.http.get("/ui/session", headers=headers)
    assert answer.status_code == 403
    assert "token" not in answer.json()


@pytest.mark.parametrize("headers", [{"X-Forwarded-For": "10.0.0.1"}, {"Host": "192.168.1.5:1"}])
def test_from_elsewhere_there_is_none_and_the_reason(
    served: Daemon, headers: dict[str, str]
) -> None:
    told = served.http.get("/ui/session", headers=headers).json()
    assert (told["token"], told["admin"]) == (None, False)
    assert "another machine" in told["why"]


def test_with_it_the_admin_side_is_open(served: Daemon, page: httpx.Client) -> None:
    assert page.get("/admin/policy").json()["generation"] >= 1
    assert page.get("/admin/nowhere").status_code == 404
    assert page.get("/admin/crashes").json() == {"crashes": []}
    assert page.get("/admin/crashes?n=0").status_code == 400
    for headers in ({"Origin": "http://localhost:3000"}, {"X-Mlxd-Page": "x"}, {"Via": "x"}):
        assert page.get("/admin/policy", headers=headers).status_code == 403
    assert served.http.get("/admin/policy").status_code == 403


def test_what_the_page_changes_is_said_to_be_of_the_page(lend: Lend) -> None:
    running = lend()
    token = running.http.get("/ui/session").json()["token"]
    running.http.post("/admin/policy/reload", headers={"X-Mlxd-Page": token})
    assert running.admin.get("/admin/policy")["last_outcome"]["by"] == "the page, 127.0.0.1"


def test_what_going_back_would_change_is_told_before(lend: Lend) -> None:
    running = lend()
    first = running.generation()
    running.edit("timeouts", "queue: 45s\n")
    running.wait_for_generation(first, 10)
    plan = running.admin.post("/admin/policy/plan", gen=str(first))
    assert plan["valid"]
    assert [(one["key"], one["old"], one["new"]) for one in plan["changes"]] == [
        ("timeouts.queue", "45s", "30s")
    ]
    assert running.generation() == first + 1
    running.edit("timeouts", "queue: nonsense\n")
    eventually(lambda: running.health()["policy"]["errors"], "it is refused")
    token = running.http.get("/ui/session").json()["token"]
    lost = running.http.post(
        f"/admin/policy/plan?gen={first}", headers={"X-Mlxd-Page": token}, json={}
    )
    assert lost.status_code == 409
    assert running.admin.post("/admin/policy/plan", gen=str(first), force="1")["valid"]


def test_an_administrator_takes_the_token_away_and_so_does_the_need_of_a_key(start: Start) -> None:
    running = start()
    token = running.http.get("/ui/session").json()["token"]
    generation = running.generation()
    running.edit("clients", ADMIN)
    running.wait_for_generation(generation, 10)
    told = running.http.get("/ui/session").json()
    assert (told["token"], told["admin"]) == (None, False)
    assert running.http.get("/admin/policy", headers={"X-Mlxd-Page": token}).status_code == 401
    folder = running.state.parent
    keys = {name: {"Authorization": f"Bearer {new_key(folder, name)}"} for name in ("ops", "apps")}
    running.admin.post("/admin/keys/reload")
    assert running.http.get("/admin/policy", headers=keys["ops"]).status_code == 200
    assert running.http.get("/admin/policy", headers=keys["apps"]).status_code == 403
    assert running.http.get("/ui/session", headers=keys["ops"]).json()["admin"] is True
    assert running.http.get("/ui/session", headers=keys["apps"]).json()["admin"] is False
    running.http.post("/admin/policy/reload", headers=keys["ops"])
    assert running.admin.get("/admin/policy")["last_outcome"]["by"].startswith("key ops-")
    _keys_are_needed(running)


def _keys_are_needed(running: Daemon) -> None:
    """The page is shown then, and nothing told."""
    generation = running.generation()
    running.edit("clients", "auth: {required: true}\n")
    running.wait_for_generation(generation, 10)
    assert running.http.get("/ui").status_code == 200
    assert running.http.get("/ui/assets/app.js").status_code == 200
    told = running.http.get("/ui/session").json()
    assert (told["token"], told["keys_required"]) == (None, True)
    assert running.http.get("/ui/state").status_code == 401


def test_policy_has_no_page(lend: Lend) -> None:
    running = lend({"server": "page: false\n"})
    for path in ("/ui", "/ui/", "/ui/session", "/ui/state", "/ui/assets/app.js"):
        answer = running.http.get(path)
        assert answer.status_code == 403
        assert answer.headers["X-Mlxd-Policy-Key"] == "server.page"
    assert running.http.get("/health").status_code == 200


def test_the_state_shows_tokens_while_they_come(served: Daemon) -> None:
    def state() -> dict[str, Any]:
        told: dict[str, Any] = served.http.get("/ui/state").json()
        return told

    before = state()["lately"]["completion_tokens"]
    with held(served, ENDLESS, "on and on", tokens=20_000):
        eventually(lambda: state()["lately"]["completion_tokens"] > before + 5, "tokens come")
        told = state()
        assert told["slots"]["active"] == 1
        assert told["health"]["status"] == "healthy"
        (model,) = [one for one in told["resident"] if one["name"] == ENDLESS]
        assert model["running"] == 1
    ended = eventually(lambda: state()["slots"]["active"] == 0 and state(), "it has ended")
    assert ended["lately"]["completion_tokens"] > before + 5
