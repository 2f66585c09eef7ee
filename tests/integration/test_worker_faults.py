"""Engine processes that die or hang, with replay off: their streams fail clearly, the others never
notice. What replay makes of it is in test_replay.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import IMPATIENT, NO_LIMITS
from tests.integration.talking import (
    ENDLESS,
    Json,
    ask,
    body_for,
    cached,
    data_of,
    events,
    eventually,
    generate,
    gone,
    held,
    idle,
    say,
    spawned,
    workers_of,
)
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

NO_REPLAY = f"replay: {{when: 'off'}}\nquarantine: {{kills: 1000}}\n{IMPATIENT}"
TIMEOUTS = "inter_token_stall: 4s\nworker_cancel_ack: 500ms\nfirst_token: 3s\n"


@pytest.fixture(scope="module")
def watched(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that soon loses patience with a silent worker."""
    folder = tmp_path_factory.mktemp("watched")
    policies = {"limits": NO_LIMITS, "timeouts": TIMEOUTS, "supervision": NO_REPLAY}
    with daemon(folder, models=zoo, policies=policies) as running:
        yield running


def _check_failed(records: list[Json]) -> str:
    """The stream ended with an error and without a finish."""
    *texts, last = records
    assert not any(record.get("done") for record in texts)
    assert last.keys() == {"error", "code"}
    return str(last["error"])


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGABRT, marks=pytest.mark.slow)]
)
def test_a_killed_worker_ends_its_stream_clearly_and_no_other(
    watched: Daemon, number: signal.Signals
) -> None:
    expected = say(watched, "tiny-b", "other", tokens=40)
    body = generate("tiny-b", "other", tokens=40)
    with held(watched) as stream:
        pid = workers_of(watched)[ENDLESS]
        with watched.http.stream("POST", "/api/generate", json=body) as other:
            lines = other.iter_lines()
            found = [json.loads(next(lines))]
            os.kill(pid, number)
            message = _check_failed(stream.rest())
            found += [json.loads(line) for line in lines]
    assert ENDLESS in message
    assert "".join(record["response"] for record in found) == expected
    idle(watched, within=5.0)
    assert say(watched, ENDLESS, "again", tokens=3)
    assert workers_of(watched)[ENDLESS] != pid


@pytest.mark.slow
def test_a_killed_worker_ends_an_event_stream_with_an_error_event(watched: Daemon) -> None:
    path = "/v1/chat/completions"
    say(watched, ENDLESS, "warm", tokens=1)
    body = body_for(path, ENDLESS, "x", tokens=8192) | {"stream": True}
    with watched.http.stream("POST", path, json=body) as response:
        blocks = response.iter_text()
        first = next(blocks)
        os.kill(workers_of(watched)[ENDLESS], signal.SIGKILL)
        text = first + "".join(blocks)
    data = data_of(text)
    if data[-1] == "[DONE]":
        data.pop()
    error = json.loads(data[-1])["error"]
    assert error["code"] == "worker_crashed"
    assert '"finish_reason":"' not in text.replace(" ", "")


def test_a_killed_worker_makes_a_whole_answer_503(watched: Daemon) -> None:
    from concurrent.futures import ThreadPoolExecutor

    say(watched, ENDLESS, "warm", tokens=1)
    body = body_for("/api/chat", ENDLESS, "x", tokens=8192)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(watched.http.post, "/api/chat", json=body)
        eventually(lambda: watched.health()["active_requests"], "the request runs")
        os.kill(workers_of(watched)[ENDLESS], signal.SIGKILL)
        refused = answer.result(20)
    assert refused.status_code == 503
    assert refused.headers["x-mlxd-code"] == "worker_crashed"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json().keys() == {"error"}


@pytest.mark.slow
def test_an_idle_worker_that_dies_is_replaced_unnoticed(watched: Daemon) -> None:
    expected = say(watched, ENDLESS, "idle", tokens=10)
    pid = workers_of(watched)[ENDLESS]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: ENDLESS not in cached(watched), "the daemon knows")
    assert say(watched, ENDLESS, "idle", tokens=10) == expected


@pytest.mark.slow
def test_a_worker_that_dies_while_it_loads_is_replaced_and_the_request_answered(
    watched: Daemon,
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = spawned(watched, "tiny-a")
    body = body_for("/api/generate", "tiny-a", "x", tokens=2)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(watched.http.post, "/api/generate", json=body)
        pid = eventually(lambda: workers_of(watched).get("tiny-a", 0), "a worker for tiny-a")
        os.kill(pid, signal.SIGKILL)
        answered = answer.result(30)
    assert answered.status_code == 200
    assert spawned(watched, "tiny-a") == before + 2


def test_a_stopped_worker_fails_its_stream_and_is_replaced(watched: Daemon) -> None:
    other = say(watched, "tiny-b", "other", tokens=30)
    with held(watched) as stream:
        pid = workers_of(watched)[ENDLESS]
        os.kill(pid, signal.SIGSTOP)
        assert say(watched, "tiny-b", "other", tokens=30) == other
        message = _check_failed(stream.rest())
    assert "timeouts.inter_token_stall" in message
    assert "timeouts.yaml:2" in message
    assert say(watched, ENDLESS, "again", tokens=3)
    assert workers_of(watched)[ENDLESS] != pid
    eventually(lambda: gone(pid), "the stopped worker is gone")
    idle(watched, within=5.0)


@pytest.mark.slow
def test_a_stopped_worker_does_not_take_a_new_request_for_ever(watched: Daemon) -> None:
    say(watched, ENDLESS, "warm", tokens=1)
    pid = workers_of(watched)[ENDLESS]
    os.kill(pid, signal.SIGSTOP)
    body = body_for("/api/generate", ENDLESS, "x", tokens=2)
    refused = watched.http.post("/api/generate", json=body)
    assert refused.status_code in (503, 504)
    assert ask(watched, body)["response"]
    eventually(lambda: gone(pid), "the stopped worker is gone")


@pytest.mark.slow
def test_an_event_stream_from_a_stopped_worker_ends_with_an_error(watched: Daemon) -> None:
    path = "/v1/completions"
    say(watched, ENDLESS, "warm", tokens=1)
    body = body_for(path, ENDLESS, "x", tokens=8192) | {"stream": True}
    with watched.http.stream("POST", path, json=body) as response:
        blocks = response.iter_bytes()
        first = next(blocks)
        os.kill(workers_of(watched)[ENDLESS], signal.SIGSTOP)
        response._content = first + b"".join(blocks)
    *_, last = [data for data in events(response) if data != "[DONE]"]
    assert json.loads(last)["error"]["code"] == "worker_stalled"


def test_workers_lead_sessions_of_their_own_with_private_folders(watched: Daemon) -> None:
    say(watched, ENDLESS, "warm", tokens=1)
    pid = workers_of(watched)[ENDLESS]
    assert os.getsid(pid) == pid
    private = Path(psutil.Process(pid).environ()["TMPDIR"])
    assert private.parent == watched.state / "tmp"
    assert private.stat().st_mode & 0o777 == 0o700
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not private.exists(), "what it kept is removed")


def test_no_zombie_and_no_folder_is_left_behind(watched: Daemon) -> None:
    alive = len(workers_of(watched))
    eventually(lambda: len(watched.workers()) == alive, "dead workers are reaped")
    folders = eventually(
        lambda: [len(list((watched.state / "tmp").iterdir()))], "the folders can be counted"
    )
    assert folders == [alive]
