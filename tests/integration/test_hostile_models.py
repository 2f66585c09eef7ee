"""A stranger's model that holds or ends its own worker: it is refused in words, and nobody else
notices.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.talking import ask, body_for, generate, ndjson, workers_of
from tests.support.daemon import Daemon, daemon
from tests.support.fleet import PACED, make_paced
from tests.support.model_maker import Shape, make_model

pytestmark = pytest.mark.mlx

HOLDS = "holds"
ENDLESS_TEMPLATE = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
IMPATIENT = """\
import sys

if "mlxd.worker" in sys.orig_argv:
    from mlxd.worker import preparation

    preparation.HELD_SECONDS = 0.5
"""
POLICIES = {
    "limits": "concurrency: {max_in_flight: 8}\nrate_limit: []\n",
    "timeouts": "inter_token_stall: 5s\nworker_cancel_ack: 500ms\n",
    "supervision": (
        "worker:\n"
        "  backoff: {base: 100ms, max: 100ms}\n"
        "  health: {interval: 500ms, timeout: 400ms, failures_down: 3}\n"
    ),
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    """A good model, and one whose template does not come to an end."""
    folder, site = tmp_path / "models", tmp_path / "site"
    folder.mkdir()
    site.mkdir()
    make_paced(folder / PACED)
    make_model(folder / HOLDS, Shape(spread=3.0, template=ENDLESS_TEMPLATE))
    (site / "sitecustomize.py").write_text(IMPATIENT)
    paths = f"{site}:{Path(__file__).parents[2]}"
    models = f"dirs: [{folder}]\nmodels: {{{PACED}: {{trust_remote_code: true}}}}\n"
    policies = POLICIES | {"models": models}
    with daemon(tmp_path, policies=policies, environment={"PYTHONPATH": paths}) as running:
        yield running


@pytest.mark.slow
def test_a_template_without_end_costs_its_own_requests_alone(served: Daemon) -> None:
    beside = generate(PACED, "beside", tokens=60)
    alone = ask(served, beside)["response"]
    said: list[str] = []
    over = threading.Event()

    def streams() -> None:
        while not over.is_set():
            found = ndjson(served.http.post("/api/generate", json=beside))
            said.append("".join(record.get("response", "") for record in found))

    thread = threading.Thread(target=streams)
    thread.start()
    try:
        answer = served.http.post("/api/chat", json=body_for("/api/chat", HOLDS, "x", tokens=2))
    finally:
        over.set()
        thread.join(60)
    assert answer.status_code == 503, answer.text
    assert set(said) == {alone}
    error: Any = json.loads(answer.text)["error"]
    assert "workers of model 'holds' died of this request" in error
    text = body_for("/v1/completions", HOLDS, "x", tokens=2)
    assert served.http.post("/v1/completions", json=text).status_code == 200
    assert PACED in workers_of(served)
