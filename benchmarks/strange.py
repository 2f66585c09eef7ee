"""Requests that nobody should send: wrong in one way or another, at random, but from a seed."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tests.fuzz.mutation import Mutator

Json = dict[str, Any]
End = Literal["whole", "fin", "reset"]
"""`fin`: the client closes its side before all is sent; `reset`: it is gone without a word."""
_TURNS = [{"role": "user", "content": "hi"}]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_LENGTH = {"num_predict": 2, "temperature": 0}
BODIES: dict[str, Json] = {
    "/api/generate": {"prompt": "x", "stream": False, "options": _LENGTH},
    "/api/chat": {"messages": _TURNS, "options": _LENGTH, "tools": [_TOOL], "stream": True},
    "/api/embed": {"input": ["x", "y"], "truncate": True},
    "/api/embeddings": {"prompt": "x"},
    "/api/show": {"verbose": False},
    "/v1/completions": {"prompt": ["x"], "max_tokens": 2, "logprobs": 2, "echo": False},
    "/v1/chat/completions": {
        "messages": _TURNS, "max_tokens": 2, "stream": True, "tools": [_TOOL], "n": 1,
        "response_format": {"type": "text"}, "logit_bias": {"5": 1}, "stop": ["zz"], "seed": 5,
    },
    "/v1/embeddings": {"input": "x", "encoding_format": "base64"},
    "/v1/responses": {"input": "x", "max_output_tokens": 2, "stream": True},
    "/v1/messages": {"messages": _TURNS, "max_tokens": 2, "system": "s", "stream": True},
    "/v1/messages/count_tokens": {"messages": _TURNS},
}  # fmt: skip
_NAMES: tuple[Any, ...] = (
    "no-such-model", "", "..", "../../etc/passwd", "/etc/passwd", "a" * 10_000, "x\0y", "\u202e",
    "%2e%2e", "hf.co/a/b", "http://127.0.0.1:9/m", "file:///etc/passwd", "good:cloud", 5, None, [],
    {"a": 1}, "a/b/c/d", "\r\nX: y",
)  # fmt: skip
_HEADERS = (
    "Host: evil.example", "Origin: null", "Origin: https://evil.example", "Content-Length: -1",
    "Content-Length: 5, 6", "Transfer-Encoding: chunked, identity", "X-Request-Priority: first",
    "Last-Event-ID: ../../x-1", "X-Request-Id: " + "x" * 500, "Cookie: " + "c" * 9000,
    "Authorization: Bearer \xff", "Authorization: Basic \x01", "Expect: 200-maybe",
    "Content-Type: text/plain", "Accept: application/x-none", "anthropic-version: \xe9",
    "X-Stainless-Retry-Count: 99999999999999999999", "Connection: upgrade", "Upgrade: websocket",
    "If-Match: \"", "Range: bytes=9-1", " folded: x", "no colon at all",
    "X-Forwarded-For: 1.2.3.4, ::1, x",
)  # fmt: skip
_TARGETS = (
    "GET /api/chat", "PUT /v1/models", "POST /", "DELETE /v1/chat/completions", "POST /api/nothing",
    "GET /v1/models/..%2f..%2fetc%2fpasswd", "GET /api/models/%00", "BREW /api/tags", "GET *",
    "GET http://127.0.0.1:9/", "POST /api/blobs/sha256:zz", "HEAD /api/blobs/sha256-" + "0" * 64,
    "GET /v1/responses/resp_x?limit=00000001" + "1" * 5000, "GET /api/events?since=-1",
    "POST /api/pull", "POST /api/copy", "DELETE /api/delete", "POST /api/create", "TRACE /health",
    "CONNECT 127.0.0.1:9", "OPTIONS /api/chat", "GET /" + "a" * 9000, "GET /metrics?x=%ff",
)  # fmt: skip
_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: body,
    "deflate": lambda body: zlib.compress(body)[:-3],
    "zstd": lambda body: b"\x28\xb5\x2f\xfd" + body,
    "br": lambda body: b"\xff" * 40,
    "rot13": lambda body: body,
    "gzip ": lambda body: gzip.compress(body)[:-5],
    "GZIP": lambda body: gzip.compress(b'{"x": "' + b"y" * 20_000_000),
}


@dataclass(frozen=True, slots=True)
class Strange:
    """One request as bytes, and how its client ends."""

    kind: str
    raw: bytes
    end: End = "whole"


class Strangers:
    """Draws them, of each kind as many."""

    def __init__(self, model: str, seed: int) -> None:
        self._model = model
        self._random = random.Random(seed)
        self._mutator = Mutator(seed, [f'"{name}"'.encode() for name in ("stream", "model", "n")])
        self._pool = [json.dumps(body | {"model": model}).encode() for body in BODIES.values()]
        self._kinds: dict[str, Callable[[], Strange]] = {
            "broken JSON": self._broken,
            "wrong types": self._wrong,
            "unknown model": self._unknown,
            "too large": self._large,
            "headers": self._headers,
            "encodings": self._encoded,
            "paths": self._path,
            "cut off": self._cut,
        }

    @property
    def kinds(self) -> list[str]:
        return [*self._kinds]

    def draw(self) -> Strange:
        return self._kinds[self._random.choice(self.kinds)]()

    def _broken(self) -> Strange:
        path, body = self._good()
        raw = json.dumps(body).encode()
        at = self._random.randrange(len(raw))
        odd = self._random.choice(
            (b"", b"\xff", b"{", b'"', b",", b"NaN", b"[" * 3000, b"\0", b"9" * 300)
        )
        return Strange("broken JSON", _request(path, raw[:at] + odd + raw[at + 3 :]))

    def _wrong(self) -> Strange:
        path, _ = self._good()
        return Strange("wrong types", _request(path, self._mutator.changed(self._pool)))

    def _unknown(self) -> Strange:
        path, body = self._good()
        wrong = json.dumps(body | {"model": self._random.choice(_NAMES)})
        return Strange("unknown model", _request(path, wrong.encode()))

    def _large(self) -> Strange:
        path, body = self._good()
        if self._random.random() < 0.9:
            raw = _request(path, b"{", "Content-Length: 999999999999")
        else:
            raw = _request(path, json.dumps(body | {"x": "y" * 9_000_000}).encode())
        return Strange("too large", raw)

    def _headers(self) -> Strange:
        path, body = self._good()
        more = self._random.sample(_HEADERS, self._random.randrange(1, 4))
        return Strange("headers", _request(path, json.dumps(body).encode(), *more))

    def _encoded(self) -> Strange:
        path, body = self._good()
        name = self._random.choice([*_ENCODINGS])
        packed = _ENCODINGS[name](json.dumps(body).encode())
        return Strange("encodings", _request(path, packed, f"Content-Encoding: {name}"))

    def _path(self) -> Strange:
        method, _, path = self._random.choice(_TARGETS).partition(" ")
        body = self._mutator.changed(self._pool) if method in ("POST", "DELETE") else b""
        return Strange("paths", _request(path, body, method=method))

    def _cut(self) -> Strange:
        path, body = self._good()
        raw = _request(path, json.dumps(body).encode())
        end: End = self._random.choice(("fin", "reset"))
        return Strange("cut off", raw[: self._random.randrange(len(raw) + 1)], end)

    def _good(self) -> tuple[str, Json]:
        path = self._random.choice([*BODIES])
        return path, BODIES[path] | {"model": self._model}


def _request(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """Whatever headers say, their own `Content-Length` and `Host` come first."""
    own = [] if any(header.startswith("Host:") for header in headers) else ["Host: localhost"]
    if body and not any(header.startswith("Content-Length") for header in headers):
        own.append(f"Content-Length: {len(body)}")
    head = "\r\n".join((f"{method} {path} HTTP/1.1", *own, *headers, "Connection: close", "", ""))
    return head.encode("latin-1") + body
