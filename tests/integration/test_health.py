"""What the daemon says of itself, and the shell commands that read it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.talking import (
    ENDLESS,
    Json,
    cached,
    eventually,
    generate,
    held,
    idle,
    say,
    workers_of,
)
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

NUMBER = (int, float)
HEALTH: dict[str, Any] = {
    "status": str,
    "service": str,
    "version": str,
    "active_requests": int,
    "max_concurrent": int,
    "active_model_requests": dict,
    "waiting_requests": dict,
    "memory": dict,
    "models_cached": int,
    "total_models": int,
    "cached_models": list,
    "loading_models": list,
    "default_model": str,
    "rate_limit": dict,
    "policy": dict,
    "pid": int,
    "warnings": list,
    "timestamp": str,
}
MEMORY = ("used_percent", "available_gb", "total_gb", "warning_threshold", "critical_threshold")
CACHED = {
    "name": str,
    "use_count": int,
    "last_used": str,
    "load_time_seconds": NUMBER,
    "active_requests": int,
    "is_loading": bool,
}
ROOT = {
    "message": str,
    "status": str,
    "service": str,
    "version": str,
    "models_loaded": int,
    "available_models": list,
    "active_requests": int,
    "max_concurrent": int,
    "memory": dict,
}
COMMANDS = [
    "curl -s URL/health | jq",
    "curl -s URL/health | jq .memory",
    "curl URL/ | jq",
    "curl URL/health | python3 -m json.tool",
    'curl -s URL/health | python3 -c "import json,sys; d=json.load(sys.stdin);'
    " print(d['status'], d['active_requests'], d['max_concurrent'],"
    " d['memory']['used_percent'])\"",
    'curl -s URL/health | python3 -c "import json,sys; d=json.load(sys.stdin);'
    f" print([m for m in d['cached_models'] if m['name'] == '{ENDLESS}'][0]['use_count'])\"",
    'curl -s URL/health | grep -A 5 "active_requests\\|memory"',
    'curl -s URL/health | python3 -m json.tool | grep -A 5 "active_requests\\|memory"',
    "curl URL/api/tags",
    "curl URL/api/chat/mlx/metrics",
    'curl -s URL/ | grep "Ollama is running"',
    f'curl -s URL/api/chat -d \'{{"model": "{ENDLESS}", "options": {{"num_predict": 3}}, '
    '"messages": [{"role": "user", "content": "hi"}]}\'',
]


@pytest.fixture
def loaded(served: Daemon) -> Daemon:
    """The shared daemon with a model that was used."""
    served.http.post("/api/generate", json=generate(ENDLESS, "hi", tokens=2))
    idle(served)
    return served


def _has(body: Json, keys: dict[str, Any]) -> None:
    for key, kind in keys.items():
        assert isinstance(body[key], kind), key
        assert kind is bool or not isinstance(body[key], bool), key


def test_health_has_every_documented_key_with_its_type(loaded: Daemon) -> None:
    body = loaded.health()
    _has(body, HEALTH)
    assert (body["service"], body["status"]) == ("mlxd", "healthy")
    assert body["pid"] == loaded.pid
    assert all(isinstance(body["memory"][key], NUMBER) for key in MEMORY)
    assert 0 < body["memory"]["used_percent"] < 100
    assert (body["memory"]["warning_threshold"], body["memory"]["critical_threshold"]) == (85, 95)
    assert all(isinstance(warning, str) for warning in body["warnings"])
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None
    model = cached(loaded)[ENDLESS]
    _has(model, CACHED)
    assert model["use_count"] >= 1
    assert model["load_time_seconds"] > 0
    assert datetime.fromisoformat(model["last_used"]).tzinfo is not None
    assert {"max_per_window", "window_seconds"} == body["rate_limit"].keys()


def test_percentages_are_written_with_a_fraction(loaded: Daemon) -> None:
    assert '"warning_threshold":85.0' in loaded.http.get("/health").text.replace(": ", ":")


def test_the_root_has_every_documented_key_with_its_type(loaded: Daemon) -> None:
    body = loaded.http.get("/").json()
    _has(body, ROOT)
    assert ENDLESS in body["available_models"]
    assert body["models_loaded"] >= 1


def test_the_old_addresses_say_the_same(loaded: Daemon) -> None:
    old, new = loaded.http.get("/api/chat/mlx/metrics").json(), loaded.health()
    assert old.keys() == new.keys()
    status = loaded.http.get("/api/chat/status").json()
    assert status["mlx"]["status"] == "healthy"
    assert status["mlx"]["url"].startswith("http://127.0.0.1:")


def test_a_running_request_is_counted_where_it_runs(served: Daemon) -> None:
    idle(served)
    with held(served, ENDLESS):
        body = served.health()
        assert body["active_requests"] == 1
        assert body["active_model_requests"] == {ENDLESS: 1}
        assert cached(served)[ENDLESS]["active_requests"] == 1
        queue = served.http.get("/queue/stats").json()
        assert (queue["active_requests"], queue["is_processing"]) == (1, True)
    idle(served)
    assert served.health()["active_model_requests"] == {}


def test_queue_stats_has_every_documented_key(served: Daemon) -> None:
    body = served.http.get("/queue/stats").json()
    assert body.keys() == {
        "active_requests",
        "max_concurrent",
        "queue_size",
        "queued",
        "waiting",
        "max_queue_size",
        "stats",
        "is_processing",
        "wait_seconds",
    }
    assert {"high", "medium", "low", "1", "2", "3"} == body["stats"]["by_priority"].keys()
    assert body["wait_seconds"].keys() == {"p50", "p99"}


@pytest.mark.slow
def test_every_slot_taken_is_degraded_and_still_ready(start: Any) -> None:
    daemon: Daemon = start({"limits": "concurrency: {max_in_flight: 1}\n"})
    with held(daemon):
        assert daemon.health()["status"] == "degraded"
        assert daemon.http.get("/readyz").status_code == 200
    idle(daemon)
    assert daemon.health()["status"] == "healthy"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_shell_commands_of_scripts_work_as_they_stand(loaded: Daemon, command: str) -> None:
    for tool in ("bash", "curl", *(["jq"] if "jq" in command else [])):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    line = "set -o pipefail; " + command.replace("URL", loaded.url)
    done = subprocess.run(
        ["bash", "-c", line], check=False, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_health_answers_while_models_load_and_crash(start: Any) -> None:
    """Within 50 ms on a machine that does little else; here it is to answer during each load, and
    not behind it.
    """
    daemon: Daemon = start()
    seconds: list[float] = []
    loading: Counter[str] = Counter()
    over = threading.Event()

    def ask(path: str) -> None:
        with httpx.Client(base_url=daemon.url) as client:
            while not over.is_set():
                began = time.monotonic()
                answer = client.get(path)
                seconds.append(time.monotonic() - began)
                assert answer.status_code == 200
                if path == "/health":
                    loading.update(answer.json()["loading_models"])
                time.sleep(0.03)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, path) for path in ("/readyz", "/health")]
        for model in ("tiny-a", "tiny-b", ENDLESS):
            say(daemon, model, "x", tokens=1)
        for pid in workers_of(daemon).values():
            os.kill(pid, signal.SIGSEGV)
        eventually(lambda: not cached(daemon), "the daemon knows")
        over.set()
        for one in asking:
            one.result(10)
    assert statistics.median(seconds) < 0.5
    assert all(loading[model] >= 3 for model in ("tiny-a", "tiny-b", ENDLESS)), loading


def test_jq_reads_the_memory(loaded: Daemon) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    line = f"curl -s {loaded.url}/health | jq .memory"
    done = subprocess.run(
        ["bash", "-c", line], check=False, capture_output=True, text=True, timeout=20
    )
    assert set(MEMORY) <= json.loads(done.stdout).keys()


def test_many_reasons_of_one_kind_are_the_first_and_how_many_more(tmp_path: Path) -> None:
    for number in range(30):
        folder = tmp_path / "models" / f"broken-{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{")
    with daemon(tmp_path, models=tmp_path / "models") as running:
        running.edit("limits", "".join(f"strange_{n}: 1\n" for n in range(300)))
        assert len(running.reload()["errors"]) == 300
        running.http.get("/api/tags")
        health = running.admin.get("/admin/health")
    more = "290 more"
    assert len(health["policy"]["errors"]) == 11
    assert more in health["policy"]["errors"][-1]
    assert sum("refused" in words for words in health["warnings"]) == 11
    assert sum(more in words for words in health["warnings"]) == 1
    assert "20 more models are unavailable: mlxd models list tells all" in health["warnings"]
    assert len(json.dumps(health)) < 20_000
