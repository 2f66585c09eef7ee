"""An encoder behind the whole daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.encoder_maker import make_encoder

pytestmark = [pytest.mark.mlx, pytest.mark.slow]


def test_it_is_listed_and_makes_vectors_and_says_what_it_cannot(
    tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    models = tmp_path / "zoo"
    models.mkdir()
    make_encoder(models / "encoder")
    running = start_daemon({}, models=models)
    (listed, _) = running.http.get("/api/tags").json()["models"]
    assert (listed["name"], listed["capabilities"]) == ("encoder:latest", ["embedding"])
    assert listed["details"]["context_length"] == 40
    body = {"model": "encoder", "input": ["fox dogs", "server " * 100]}
    answer = running.http.post("/api/embed", json=body).json()
    assert [len(vector) for vector in answer["embeddings"]] == [16, 16]
    assert answer["prompt_eval_count"] == 5 + 40
    chat = {"model": "encoder", "messages": [{"role": "user", "content": "hi"}]}
    refused = running.http.post("/v1/chat/completions", json=chat)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == '"encoder" does not support chat'
    refused = running.http.post("/api/generate", json={"model": "encoder", "prompt": "hi"})
    assert refused.status_code == 400
    assert refused.json()["error"] == '"encoder" does not support generate'
