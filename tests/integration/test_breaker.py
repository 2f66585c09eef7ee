"""A model whose worker keeps dying, with real processes: the whole series, and what others see."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import NO_LIMITS
from tests.integration.reciter import SEGFAULT, make_dying
from tests.integration.talking import (
    ENDLESS,
    Json,
    body_for,
    cached,
    eventually,
    generate,
    gone,
    say,
    workers_of,
)
from tests.support import command
from tests.support.daemon import Daemon, daemon
from tests.support.fleet import PACED, make_paced

pytestmark = pytest.mark.mlx

DYING = "tiny-dying"
SUPERVISION = """
worker:
  budget: [{max: 2, per: 300s}]
  backoff: {base: 100ms, reset_after: 1h}
  breaker: {BREAKERopen: 500ms, quarantine: 1h}
  health: {interval: 1s, timeout: 500ms, failures_down: 3}
"""
SETTINGS = {
    "limits": NO_LIMITS,
    "timeouts": "inter_token_stall: 60s\n",
}
Make = Callable[..., tuple[Daemon, Path]]


@pytest.fixture
def make(zoo: Path, tmp_path: Path) -> Iterator[Make]:
    """A daemon with a dying model beside endless ones, and the file that cures it."""
    with _stack() as enter:

        def made(
            when: str = "load", end: str = SEGFAULT, models: str = "", breaker: str = ""
        ) -> tuple[Daemon, Path]:
            folder, cure = tmp_path / "models", tmp_path / "cure"
            folder.mkdir()
            make_dying(folder / DYING, cure, when=when, end=end)
            (folder / ENDLESS).symlink_to(zoo / ENDLESS)
            make_paced(folder / PACED)
            trusted = "{trust_remote_code: true}"
            policy = (
                f"dirs: [{folder}]\n"
                f"models: {{{DYING}: {trusted}, {PACED}: {trusted}}}\n"
                f"load: {{retry: {{max: 0}}}}\n{models}"
            )
            supervision = SUPERVISION.replace("BREAKER", breaker)
            policies = {**SETTINGS, "models": policy, "supervision": supervision}
            return enter(daemon(tmp_path, models=folder, policies=policies)), cure

        yield made


@contextmanager
def _stack() -> Iterator[Callable[[Any], Any]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield stack.enter_context


def ask(running: Daemon, model: str = DYING) -> httpx.Response:
    return running.http.post("/api/generate", json=body_for("/api/generate", model, "x", tokens=2))


def told(running: Daemon, *types: str) -> list[Json]:
    """The events of these types, of the dying model."""
    events = running.admin.get("/admin/events")["events"]
    return [e for e in events if e["type"] in types and e["data"].get("model") == DYING]


def worker(running: Daemon, model: str = DYING) -> Json:
    """What /health says of its worker; nothing: it is idle."""
    found = [one for one in running.health()["workers"] if one["model"] == model]
    return found[0] if found else {}


def until(running: Daemon, state: str, model: str = DYING) -> Json:
    return eventually(
        lambda: found if (found := worker(running, model)).get("state") == state else {},
        f"{model} is {state}",
        within=60,
    )


def fail(running: Daemon, times: int) -> None:
    """Requests, until its worker has failed so often."""
    deadline = time.monotonic() + 90
    while len(told(running, "worker_down")) < times:
        assert time.monotonic() < deadline
        assert ask(running).status_code == 503


def moves(running: Daemon) -> list[tuple[str, str]]:
    return [(e["data"]["from"], e["data"]["to"]) for e in told(running, "breaker")]


def mlxd(running: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command.mlxd(*arguments, "--state", running.state)


class Reader:
    """Reads one long stream, of a model that hardly works, beside all that happens."""

    def __init__(self, running: Daemon, tokens: int) -> None:
        self.text = ""
        self.done: Json = {}
        self._body = generate(PACED, "beside", tokens=tokens)
        self._url = running.url
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with httpx.stream("POST", f"{self._url}/api/generate", json=self._body, timeout=120) as got:
            for line in got.iter_lines():
                record = json.loads(line)
                self.text += record.get("response", "")
                self.done = record

    def end(self) -> str:
        self._thread.join(120)
        assert self.done.get("done") is True, self.done
        return self.text


def test_a_model_that_keeps_crashing_is_probed_and_nobody_else_notices(make: Make) -> None:
    running, cure = make()
    expected = say(running, PACED, "beside", tokens=300)
    neighbour = workers_of(running)[PACED]
    reader = Reader(running, 300)

    fail(running, 3)  # a probe may have failed since
    downs = told(running, "worker_down")[:3]
    assert [e["data"]["reason"] for e in downs] == ["SIGSEGV"] * 3
    waits = [e["data"]["after"] for e in told(running, "restart")[:2]]
    assert all(wait >= low for wait, low in zip(waits, [0.1, 0.2], strict=True)), waits
    assert moves(running)[0] == ("starting", "open")
    assert running.health()["status"] == "warning"
    cure_told = f"mlxd models reset {DYING}"  # unless a probe is under way
    eventually(lambda: any(cure_told in words for words in running.health()["warnings"]), cure_told)
    _check_refused(running)

    eventually(lambda: len(told(running, "worker_down")) >= 4, "a probe fails", within=60)
    cure.touch()
    serving = until(running, "serving")
    assert (serving["pid"], serving["reason"]) == (workers_of(running)[DYING], "")
    assert moves(running)[-1] == ("probing", "serving")
    assert ask(running).status_code == 200
    assert running.health()["status"] == "healthy"
    _check_metrics(running)

    cure.unlink()
    before = len(moves(running))
    os.kill(serving["pid"], signal.SIGSEGV)
    eventually(lambda: moves(running)[before:], "its breaker opens")
    assert moves(running)[before] == ("serving", "open"), "the count was not reset"

    assert reader.end() == expected
    assert workers_of(running)[PACED] == neighbour


@pytest.mark.slow
def test_a_model_whose_probes_fail_is_quarantined_until_it_is_reset(make: Make) -> None:
    running, cure = make(breaker="failures: 1, probes: 2, ")
    fail(running, 1)
    found = until(running, "quarantined")
    assert found["pid"] is None
    assert 0 < found["next_start_in"] <= 3600
    probed = [("open", "probing"), ("probing", "open"), ("open", "probing")]
    assert moves(running) == [("starting", "open"), *probed, ("probing", "quarantined")]
    refused = ask(running)
    assert refused.headers["x-mlxd-code"] == "model_quarantined"
    assert refused.headers["x-mlxd-policy-key"] == "supervision.worker.breaker.quarantine"
    assert mlxd(running, "models", "list").stdout.count("quarantined") == 1

    cure.touch()
    done = mlxd(running, "models", "reset", DYING)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{DYING} is tried with the next request\n"
    assert ask(running).status_code == 200
    assert running.health()["status"] == "healthy"
    again = mlxd(running, "models", "reset", DYING, "--json")
    assert json.loads(again.stdout) == {"model": DYING, "reset": False, "requests": 0}
    unknown = mlxd(running, "models", "reset", "no-such")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no-such" in unknown.stderr


def _check_refused(running: Daemon) -> None:
    """An open breaker answers at once; a probe may be under way just now, which takes its time."""

    def refused() -> httpx.Response | None:
        began = time.monotonic()
        answer = ask(running)
        assert answer.status_code == 503
        opened = answer.headers["x-mlxd-code"] == "breaker_open"
        return answer if opened and time.monotonic() - began < 1.0 else None

    answer = eventually(refused, "a request is refused because its breaker is open")
    assert answer is not None
    assert int(answer.headers["retry-after"]) >= 1
    assert "SIGSEGV" in answer.json()["error"]


def _check_metrics(running: Daemon) -> None:
    text = running.http.get("/metrics").text
    assert f'mlxd_worker_up{{model="{DYING}"}} 1.0' in text
    assert f'mlxd_breaker_state{{model="{DYING}",state="serving"}} 1.0' in text
    ends = len(told(running, "worker_down"))
    assert f'mlxd_worker_exits_total{{model="{DYING}",reason="SIGSEGV"}} {float(ends)}' in text
    assert f'mlxd_worker_restarts_total{{model="{DYING}"}}' in text


@pytest.mark.slow
def test_one_that_dies_of_its_first_token_never_serves(make: Make) -> None:
    """Its load is not reported before it has made a token."""
    running, cure = make("step", "os._exit(3)")
    fail(running, 2)
    assert [e["data"]["reason"] for e in told(running, "worker_down")] == ["exit 3"] * 2
    assert told(running, "worker_up", "load") == []
    assert DYING not in cached(running)
    cure.touch()
    assert ask(running).status_code == 200
    assert len(told(running, "load")) == 1


@pytest.mark.slow
def test_a_dead_worker_is_out_of_every_list_at_once(make: Make) -> None:
    running, cure = make()
    cure.touch()
    assert ask(running).status_code == 200
    os.kill(workers_of(running)[DYING], signal.SIGKILL)
    began = time.monotonic()
    eventually(lambda: worker(running).get("state") != "serving", "it is noticed", within=5)
    assert time.monotonic() - began < 5
    assert DYING not in cached(running)
    names = [model["name"] for model in running.http.get("/api/ps").json()["models"]]
    assert f"{DYING}:latest" not in names
    assert ask(running).status_code == 200


@pytest.mark.slow
def test_a_stopped_idle_worker_is_found_by_its_checks_and_ended(make: Make) -> None:
    running, cure = make()
    cure.touch()
    assert ask(running).status_code == 200
    pid = workers_of(running)[DYING]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: gone(pid), "it is killed", within=30)
    eventually(lambda: told(running, "worker_down"), "that is told")
    assert told(running, "worker_down")[0]["data"]["reason"] == "suspended"
    assert ask(running).status_code == 200


@pytest.mark.slow
def test_a_preloaded_model_comes_back_by_itself(make: Make) -> None:
    running, _ = make(models=f"preload: [{ENDLESS}]\n")
    pid = eventually(lambda: workers_of(running).get(ENDLESS, 0), "it is preloaded")
    until(running, "serving", ENDLESS)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: workers_of(running).get(ENDLESS, pid) != pid, "another is started")
    until(running, "serving", ENDLESS)


@pytest.mark.slow
def test_one_that_is_ended_for_its_size_comes_back_by_itself(make: Make) -> None:
    running, _ = make(models=f"preload: [{ENDLESS}]\n")
    pid = eventually(lambda: workers_of(running).get(ENDLESS, 0), "it is preloaded")
    until(running, "serving", ENDLESS)
    running.edit("memory", "check_interval: 500ms\nworker_limits: {rss_hard: 1MiB}\n")
    eventually(lambda: gone(pid), "it is ended")
    running.edit("memory", "check_interval: 500ms\n")
    eventually(lambda: workers_of(running).get(ENDLESS, pid) != pid, "another is started")
    until(running, "serving", ENDLESS)


@pytest.mark.slow
def test_changed_files_end_a_quarantine(make: Make) -> None:
    running, _ = make(breaker="failures: 1, probes: 1, ")
    fail(running, 1)
    until(running, "quarantined")
    assert ask(running).headers["x-mlxd-code"] == "model_quarantined"
    models = running.state.parent / "models"
    shutil.rmtree(models / DYING)
    shutil.copytree(models / ENDLESS, models / DYING)
    eventually(lambda: ask(running).status_code == 200, "other files are another model")
