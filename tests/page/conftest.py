"""A real browser at the page of a real daemon; skipped where there is no browser to be had."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import NO_LIMITS, start, zoo
from tests.support.daemon import Daemon, daemon
from tests.support.fleet import PACED, make_paced

__all__ = ["start", "zoo"]

AXE = "axe-core@4.14.1"
"""What looks for barriers; fetched into a folder of the run's own."""
_FETCH_SECONDS = 60
WITHIN_MS = 60_000


def until(page: Any, fact: Callable[[], object], what: str) -> None:
    """Look again and again; meanwhile the browser is heard. Its own way of waiting compiles text to
    code, which the page's policy forbids.
    """
    deadline = time.monotonic() + WITHIN_MS / 1000
    while not fact():
        assert time.monotonic() < deadline, f"not in time: {what}"
        page.wait_for_timeout(100)


def says(page: Any, selector: str, pattern: str) -> None:
    """Wait until an element's text matches."""
    script = "(where) => document.querySelector(where)?.textContent ?? ''"
    found = re.compile(pattern, re.DOTALL)
    until(page, lambda: found.search(page.evaluate(script, selector)), f"{selector}: {pattern}")


class Served(Protocol):
    """What a tab is opened at."""

    port: int


@dataclass(slots=True)
class Watched:
    """One tab, and what must never happen in it."""

    page: Any
    daemon: Served
    complaints: list[str] = field(default_factory=list)
    """Of its console, and of scripts that failed."""
    elsewhere: list[str] = field(default_factory=list)
    """Requests to anything but the daemon."""

    def open(self, view: str = "overview") -> Any:
        """Show a view, and wait until the daemon has told of itself."""
        self.page.goto(f"http://localhost:{self.daemon.port}/ui#{view}")
        says(self.page, "#version", r"\d")
        return self.page

    def go(self, view: str) -> Any:
        """To another view, as people do."""
        self.page.get_by_role("link", name=view, exact=True).click()
        return self.page


Open = Callable[..., Watched]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; its own sandbox does not run as root. No longer than a file has tests: as long as
    it is there, its library's event loop is the one that runs in this thread, and no other can.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no chromium: the package of that name has it")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shown(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for tests that leave it as they found it. What answers for long there leaves the
    browser its core.
    """
    folder = tmp_path_factory.mktemp("shown")
    make_paced(folder / "paced" / PACED)
    dirs = f"dirs: [{zoo}, {folder / 'paced'}]\n"
    models = f"{dirs}models: {{{PACED}: {{trust_remote_code: true}}}}\n"
    with daemon(folder, policies={"limits": NO_LIMITS, "models": models}) as running:
        yield running


@pytest.fixture
def tab(chromium: Any) -> Iterator[Open]:
    """Open tabs at daemons; each is held to silence and to staying at home when the test ends."""
    opened: list[Watched] = []

    def new(running: Served, *, width: int = 1440, scheme: str = "light") -> Watched:
        size = {"width": width, "height": 900}
        page = chromium.new_page(viewport=size, color_scheme=scheme)
        page.set_default_timeout(WITHIN_MS)
        watched = Watched(page, running)
        page.on("console", lambda said: _note(watched, said.type, said.text))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("request", lambda request: _follow(watched, request.url))
        opened.append(watched)
        return watched

    yield new
    for watched in opened:
        watched.page.close()
    assert [line for one in opened for line in one.complaints] == []
    assert [url for one in opened for url in one.elsewhere] == []


def _note(watched: Watched, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        watched.complaints.append(text)


def _follow(watched: Watched, url: str) -> None:
    if urlsplit(url).netloc != f"localhost:{watched.daemon.port}":
        watched.elsewhere.append(url)


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its text."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm, which fetches axe-core")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--silent", "--no-save", "--ignore-scripts", "--no-audit", AXE]
    try:
        subprocess.run(command, cwd=folder, check=True, timeout=_FETCH_SECONDS, capture_output=True)
    except (subprocess.SubprocessError, OSError):
        pytest.skip("axe-core cannot be fetched here")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()
