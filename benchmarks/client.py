"""How two dialects ask and answer; the sockets are those of `mlxd bench` (mlxd/bench/client.py)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from functools import partial

from mlxd.bench.client import (
    Answer,
    Api,
    BadAnswer,
    Exchange,
    Json,
    Lines,
    read_answer,
    read_openai_stream,
    request_bytes,
)
from mlxd.bench.client import run_load as run_load_over

__all__ = [
    "APIS", "Answer", "Api", "BadAnswer", "Exchange", "read_answer", "request_bytes", "run_load",
]  # fmt: skip


def run_load(
    port: int, requests: list[bytes], timeout: float, window: Callable[[], None]
) -> list[Exchange]:
    """Over TCP to this machine."""
    return run_load_over(partial(_connected, port), requests, timeout, window)


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _openai_body(model: str, prompt: str, tokens: int, stream: bool) -> Json:
    body: Json = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": stream,
    }
    return body | ({"stream_options": {"include_usage": True}} if stream else {})


def _read_openai_whole(answer: Json) -> int:
    assert answer["choices"][0]["message"]["content"]
    return int(answer["usage"]["completion_tokens"])


def _ollama_body(model: str, prompt: str, tokens: int, stream: bool) -> Json:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "options": {"temperature": 0, "num_predict": tokens},
        "stream": stream,
    }


def _read_ollama_stream(lines: Lines) -> tuple[list[float], int]:
    times: list[float] = []
    tokens = -1
    for at, line in lines:
        record = json.loads(line)
        if record["message"]["content"]:
            times.append(at)
        tokens = record.get("eval_count", tokens)
    return times, tokens


def _read_ollama_whole(answer: Json) -> int:
    assert answer["message"]["content"]
    return int(answer["eval_count"])


APIS = {
    "openai": Api("/v1/chat/completions", _openai_body, read_openai_stream, _read_openai_whole),
    "ollama": Api("/api/chat", _ollama_body, _read_ollama_stream, _read_ollama_whole),
}
