"""The page in a browser: it shows what the daemon does, changes what it may, says what fails."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.integration.conftest import Start
from tests.integration.talking import eventually, held
from tests.integration.test_keys import new_key
from tests.page.conftest import Open, says, until
from tests.support.daemon import Daemon
from tests.support.fleet import PACED

pytestmark = pytest.mark.mlx

REFUSED = {"error": {"message": "not today"}}
BARRIERS = frozenset({"serious", "critical"})
VIEWS = ("overview", "models", "requests", "tenants", "policies", "events", "chat")


def row(page: Any, name: str) -> Any:
    """Of a table, the row of that name."""
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name)).first


def asked_for(page: Any, path: str) -> list[str]:
    """Requests for it, from now on."""
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url) if path in request.url else None)
    return found


def test_it_shows_a_stream_that_runs_elsewhere(shown: Daemon, tab: Open) -> None:
    page = tab(shown).open()
    says(page, "#status", "healthy")
    with held(shown, PACED):
        says(page, "#active", "^1$")
        says(page, "#resident", f"{PACED}.*1 running")
        says(page, "#charts", r"[1-9]\d* answers")
        says(page, "#latest", f"{PACED} is loaded")
    says(page, "#active", "^0$")
    assert page.locator("#charts canvas").count() == 4
    assert re.search(r"\d+\.\d %", page.locator("#memory-used").text_content())


def test_models_are_loaded_kept_and_unloaded(start: Start, tab: Open) -> None:
    running = start()
    page = tab(running).open()
    says(page, "#resident-none", "No model is in memory")
    assert page.locator("#resident-none").is_visible()
    page = tab(running).open("models")
    page.get_by_role("button", name="Load tiny-a").click()
    says(page, "#say", "tiny-a is in memory")
    assert running.health()["models_cached"] == 1
    page.get_by_role("button", name="Keep tiny-a").click()
    row(page, "tiny-a").get_by_text("kept", exact=True).wait_for()
    (model,) = running.admin.get("/admin/ps")["models"]
    assert model["expires_in_seconds"] is None
    page.get_by_role("button", name="Unload tiny-a").click()
    page.get_by_role("button", name="Load tiny-a").wait_for()
    eventually(lambda: running.health()["models_cached"] == 0, "it has left")


def test_a_model_that_cannot_be_loaded_says_why(start: Start, tab: Open) -> None:
    running = start({"memory": "reserve: {system: 1000TiB}\n"})
    watched = tab(running)
    page = watched.open("models")
    page.get_by_role("button", name="Load tiny-a").click()
    says(page, "#say", "tiny-a: .*memory")
    watched.complaints.clear()  # a browser calls a 503 an error


def test_chat_streams_and_stops(shown: Daemon, tab: Open) -> None:
    page = tab(shown).open("chat")
    until(page, lambda: page.locator("#chat-model option").count() > 2, "models are listed")
    page.get_by_label("Model", exact=True).select_option(PACED)
    page.get_by_label("Message").fill("go on")
    page.get_by_role("button", name="Send").click()
    said = page.locator("#talk li").nth(1).locator(".said")
    until(page, lambda: len(said.text_content()) > 40, "it streams")
    eventually(lambda: shown.health()["active_requests"] == 1, "it runs")
    stop = page.get_by_role("button", name="Stop")
    place, length = stop.bounding_box(), len(said.text_content())
    until(page, lambda: len(said.text_content()) > length + 400, "lines are added")
    assert stop.bounding_box() == place, "who aims at it misses it"
    stop.click()
    eventually(lambda: shown.health()["active_requests"] == 0, "it has been stopped")
    says(page, "#chat-pace", r"first token after .*tokens.*tokens/s.*stopped")
    page.get_by_role("button", name="Begin anew").click()
    assert page.locator("#talk li").count() == 0
    page.get_by_label("Model", exact=True).select_option("mlxd-guide")
    page.get_by_label("Message").fill("What port does mlxd use?")
    page.get_by_label("Message").press("Enter")
    says(page, "#talk li:nth-child(2) .said", "11435")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        0, 0, "",
    ]  # fmt: skip


def test_an_answer_is_drawn_in_strides_and_whole(shown: Daemon, tab: Open) -> None:
    """A layout for each token of a long answer leaves the tab no time for a click."""
    page = tab(shown).open("chat")
    tokens = [f"word{n}\n" if n % 7 == 0 else f"word{n} " for n in range(4000)]
    chunks = [{"choices": [{"index": 0, "delta": {"content": one}}]} for one in tokens]
    body = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    page.evaluate("""() => {
        window.drawn = 0;
        const all = { childList: true, characterData: true, subtree: true };
        new MutationObserver((found) => { window.drawn += found.length; })
            .observe(document.getElementById("talk"), all);
    }""")
    page.get_by_label("Message").fill("go on")
    page.get_by_role("button", name="Send").click()
    says(page, "#talk li:nth-child(2) .said", "word3999 $")
    assert page.locator("#talk li:nth-child(2) .said").text_content() == "".join(tokens)
    assert page.evaluate("window.drawn") < len(tokens) / 10
    says(page, "#chat-pace", "4,000 tokens")
    low = "(list) => list.scrollHeight - list.scrollTop - list.clientHeight < 2"
    assert page.locator("#talk").evaluate(low), "its end is in sight"


def test_what_was_forgotten_or_refused_is_not_sent_again(shown: Daemon, tab: Open) -> None:
    watched = tab(shown)
    page = watched.open("chat")
    sent: list[Any] = []
    page.on("request", lambda one: sent.append(one.post_data) if "completions" in one.url else None)
    until(page, lambda: page.locator("#chat-model option").count() > 2, "models are listed")
    page.get_by_label("Model", exact=True).select_option(PACED)
    page.get_by_label("Message").fill("a secret")
    page.get_by_role("button", name="Send").click()
    said = page.locator("#talk li").nth(1).locator(".said")
    until(page, lambda: len(said.text_content()) > 40, "it streams")
    page.get_by_role("button", name="Begin anew").click()
    until(page, page.get_by_role("button", name="Send").is_enabled, "it has ended")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=REFUSED))
    for words, told in (("first", "not today"), ("second", "not today.*not today")):
        page.get_by_label("Message").fill(words)
        page.get_by_role("button", name="Send").click()
        says(page, "#talk", told)
        until(page, page.get_by_role("button", name="Send").is_enabled, "it is over")
    messages = [one["content"] for one in json.loads(sent[-1])["messages"]]
    assert messages == ["first", "second"]
    watched.complaints.clear()  # a browser calls a 400 an error


@pytest.mark.slow
def test_a_refused_chat_is_told_in_words(start: Start, tab: Open) -> None:
    running = start(
        {"limits": "tokens: {max_output: 5}\nrate_limit: [{requests: 1, window: 1h}]\n"}
    )
    running.http.post("/api/generate", json={"model": "tiny-a", "prompt": "x"})
    watched = tab(running)
    page = watched.open("chat")
    page.get_by_label("Message").fill("hello")
    page.get_by_role("button", name="Send").click()
    says(page, "#talk", "limits.rate_limit|requests")
    assert page.get_by_role("button", name="Send").is_enabled()
    watched.complaints.clear()  # a browser calls a 429 an error


def test_a_broken_edit_is_shown_with_its_line_and_mended(start: Start, tab: Open) -> None:
    running = start()
    page = tab(running).open("policies")
    running.edit("timeouts", "queue: 45s\nfirst_byte: soon\n")
    says(page, "#policies-errors", r"timeouts\.yaml:3:\d+")
    assert page.locator("#policies-errors").is_visible()
    says(page, "#status", "warning")
    running.edit("timeouts", "queue: 45s\n")
    page.locator("#policies-errors").wait_for(state="hidden")
    page.locator("#policy-table").get_by_text("policies/timeouts.yaml:2").wait_for()
    says(page, "#status", "healthy")


def test_rolling_back_shows_what_changes_first(start: Start, tab: Open) -> None:
    running = start()
    first = running.generation()
    running.edit("timeouts", "queue: 45s\n")
    running.wait_for_generation(first, 10)
    page = tab(running).open("policies")
    compare = page.get_by_role("button", name=f"Compare with generation {first}")
    compare.click()
    dialog = page.get_by_role("dialog")
    text = dialog.get_by_role("table").text_content()
    assert re.search(r"timeouts\.queue.*45s.*30s", text)
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert running.generation() == first + 1
    assert compare.evaluate("(button) => button === document.activeElement")
    compare.press("Enter")
    dialog.get_by_role("button", name=f"Roll back to generation {first}").click()
    says(page, "#say", f"Generation {first + 2} is in force")
    assert running.generation() == first + 2
    assert running.admin.get("/admin/policy")["last_outcome"]["by"].startswith("the page")
    says(page, "#history-table", f"{first + 2}, in force")


def test_a_story_is_opened_and_closed(shown: Daemon, tab: Open) -> None:
    body = {"model": "tiny-a", "prompt": "once", "options": {"num_predict": 3}, "stream": False}
    answer = shown.http.post("/api/generate", json=body, headers={"X-Request-Id": "tale-1"})
    assert answer.status_code == 200
    page = tab(shown).open("requests")
    page.get_by_role("button", name="tale-1").click()
    dialog = page.get_by_role("dialog", name="Request tale-1")
    text = dialog.text_content()
    for words in ("asked", "admitted", "leased", "finished", "tiny-a", "/api/generate"):
        assert words in text
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="hidden")


def test_a_crash_is_told_as_it_happens(start: Start, tab: Open) -> None:
    """Though it is written down behind its event."""
    running = start()
    running.http.post("/api/generate", json={"model": "tiny-a"})
    page = tab(running).open("events")
    says(page, "#crashes-none", "No crash is recorded")
    page.route("**/admin/crashes*", lambda route: route.fulfill(json={"crashes": []}), times=1)
    (worker,) = running.workers()
    worker.kill()
    says(page, "#log", "worker_down.*tiny-a")
    says(page, "#crashes", "SIGKILL")
    page.get_by_text("worker_down").first.click()
    says(page, "#log li:has(details[open]) pre", '"model": "tiny-a"')


def test_it_asks_once_a_second_and_not_while_nobody_looks(shown: Daemon, tab: Open) -> None:
    page = tab(shown).open()
    says(page, "#status", "healthy")
    asked = asked_for(page, "/")
    page.wait_for_timeout(2500)
    assert 1 <= len(asked) <= 4
    assert {url.rpartition("/")[2] for url in asked} == {"state"}
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden,"
    hide += " configurable: true}); document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    page.wait_for_timeout(500)
    asked.clear()
    page.wait_for_timeout(2000)
    assert asked == []
    page.evaluate(hide, False)
    until(page, lambda: len(asked) >= 2, "it asks again")


def test_an_administrators_key_opens_it_and_stays_in_the_tab(start: Start, tab: Open) -> None:
    running = start({"clients": "tenants: {ops: {admin: true}}\n"})
    key = new_key(running.state.parent, "ops")
    running.admin.post("/admin/keys/reload")
    page = tab(running).open("models")
    says(page, "#sign-in-why", "key of an administrator")
    assert page.get_by_role("button", name="Load tiny-a").count() == 0
    field = page.get_by_label("API key of an administrator")
    field.fill("mlxd_wrong")
    field.press("Enter")
    says(page, "#say", "not known")
    field.fill(key)
    field.press("Enter")
    says(page, "#say", "You may administer")
    page.get_by_role("button", name="Load tiny-a").wait_for()
    assert not page.locator("#sign-in").is_visible()
    assert key not in page.content()


def test_whose_key_is_revoked_goes_on_watching(start: Start, tab: Open) -> None:
    running = start({"clients": "tenants: {ops: {admin: true}}\n"})
    key = new_key(running.state.parent, "ops")
    running.admin.post("/admin/keys/reload")
    watched = tab(running)
    page = watched.open("requests")
    field = page.get_by_label("API key of an administrator")
    field.fill(key)
    field.press("Enter")
    says(page, "#say", "You may administer")
    (running.state / "keys.yaml").unlink()
    running.admin.post("/admin/keys/reload")
    page.locator("#sign-in").wait_for()
    says(page, "#requests-table", "Stories are for administrators")
    asked = asked_for(page, "ui/state")
    until(page, lambda: len(asked) >= 2, "it asks again")
    watched.complaints.clear()  # a browser calls a 401 an error


def test_a_daemon_that_hangs_is_told(shown: Daemon, tab: Open) -> None:
    page = tab(shown).open()
    says(page, "#status", "healthy")
    page.route("**/ui/state", lambda _: None)
    page.locator("#offline").wait_for()
    says(page, "#status", "no answer")
    page.unroute("**/ui/state")
    page.locator("#offline").wait_for(state="hidden")
    says(page, "#status", "healthy")


def test_a_daemon_that_is_gone_and_another_that_comes(start: Start, tab: Open) -> None:
    running = start()
    watched = tab(running)
    page = watched.open()
    says(page, "#status", "healthy")
    running.stop()
    page.locator("#offline").wait_for()
    says(page, "#status", "no answer")
    watched.complaints.clear()
    start(port=running.port)
    page.locator("#offline").wait_for(state="hidden")
    watched.go("Models")
    page.get_by_role("button", name="Load tiny-a").click()
    says(page, "#say", "tiny-a is in memory")
    watched.complaints.clear()  # the token of the first daemon was refused, and renewed


def test_everything_is_reached_by_keyboard(shown: Daemon, tab: Open) -> None:
    page = tab(shown).open("")
    page.keyboard.press("Tab")
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == "Skip to the content"
    for name in ("Overview", "Models", "Requests"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.locator("#requests").wait_for()
    current = page.locator("nav [aria-current=page]")
    assert current.text_content() == "Requests"
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("#requests").is_visible()


@pytest.mark.parametrize(
    ("width", "scheme", "views"),
    [
        (390, "dark", VIEWS[::2]),
        pytest.param(390, "dark", VIEWS, marks=pytest.mark.slow),
        pytest.param(1440, "light", VIEWS, marks=pytest.mark.slow),
        pytest.param(390, "light", VIEWS, marks=pytest.mark.slow),
        pytest.param(1440, "dark", VIEWS, marks=pytest.mark.slow),
    ],
)
def test_there_are_no_barriers(
    shown: Daemon, tab: Open, axe: str, scheme: str, width: int, views: tuple[str, ...]
) -> None:
    shown.http.post("/api/generate", json={"model": "tiny-a", "prompt": "hi"})
    watched = tab(shown, width=width, scheme=scheme)
    page = watched.open()
    page.evaluate(axe)
    found = []
    for view in views:
        page.evaluate(f"location.hash = '{view}'")
        page.locator(f"#{view}").wait_for()
        page.wait_for_timeout(300)
        found += barriers(page, view)
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{view} is {wide} pixels wider than {width}"
    page.evaluate("location.hash = 'requests'")
    page.locator("#requests button.link").first.click()
    found += barriers(page, "a story")
    assert found == []


def barriers(page: Any, view: str) -> list[str]:
    """What keeps people out."""
    violations = page.evaluate("axe.run().then((found) => found.violations)")
    return [
        f"{view}: {one['id']}: {node['target']} {node['failureSummary']}"
        for one in violations
        if one["impact"] in BARRIERS
        for node in one["nodes"]
    ]
