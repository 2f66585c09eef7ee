"""Where made-up requests are to go: most of them to something that is there, so that they do more
than be refused for a name. What would be slow, or reach outside, is left to few of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Any

from schemathesis import Case
from schemathesis.transport.serialization import Binary

from mlxd.dialects.ollama.create import NOT_BUILT

MODELS = ("tiny-a", "tiny-tools")
COPIES = ("copy-a", "copy-b")
REPOSITORY = "nobody/nothing"
REQUEST = "contract"
"""The id of a request that has been answered."""
_PRIORITIES = ("high", "medium", "low", "LOW", "2")

_REFUSED = frozenset(
    {
        *("audio", "modalities", "images", "mcp_servers", "background", "conversation"),
        *("tool_choice", "functions", "function_call", "min_tokens", "logit_bias", "suffix"),
        *("template", "raw", "context", "think", "_debug_render_only"),
    }
)
"""And what is seldom right beside something else."""
_TOOLS = frozenset({"tools", "thinking", "reasoning", "reasoning_effort"})
"""What not every model can."""
_GRAMMARS = ("grammar", "structural_tag")
_FORMS = frozenset({"response_format", "structured_outputs", "text", "output_format"})
_SCHEMAS = frozenset({"format"})
_FORMATS = ("", "json", {"type": "object", "properties": {"a": {"type": "integer"}}})
_TOKENS = frozenset({"prompt", "input"})
_POINTS = frozenset({"prefill", "decode"})
_COUNTS = frozenset({"n", "best_of"})
_INPUTS: tuple[Any, ...] = (
    "hi",
    [{"role": "user", "content": "hi"}],
    [{"type": "reasoning", "summary": []}, {"type": "message", "role": "user", "content": "go on"}],
    [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ],
)


class Aim:
    """Knows what is there."""

    def __init__(self, response: Callable[[], str]) -> None:
        """`response` makes a kept one, and returns its id."""
        self._response = response

    def at(self, case: Case, chance: Random) -> None:
        """Changes the case."""
        if isinstance(case.body, dict):
            self._body(case, case.body, chance)
        elif isinstance(case.body, Binary) and _mostly(chance):
            case.path_parameters["digest"] = f"sha256:{hashlib.sha256(case.body.data).hexdigest()}"
        self._path(case, chance)
        self._query(case, chance)
        self._headers(case, chance)

    def _body(self, case: Case, body: dict[str, Any], chance: Random) -> None:
        path = case.operation.path
        if path.endswith(("/copy", "/create")):
            self._copied(body, chance)
        elif path.endswith("/delete"):
            _put(body, "model", (*COPIES, "tiny-a"), chance)
            body.pop("name", None)
        elif path.endswith("/pull"):
            if "/" in str(body.get("model")) or _rarely(chance):
                body["model"] = REPOSITORY
            elif _mostly(chance):
                body["model"] = "nobody nothing"
        else:
            _put(body, "model", MODELS, chance)
            if _mostly(chance):
                body.pop("name", None)
            if not _rarely(chance):
                self._tame(case, body, chance)
        if not _rarely(chance):
            body.pop("keep_alive", None)

    def _tame(self, case: Case, body: dict[str, Any], chance: Random) -> None:
        """Without what is right by itself, and refused for what stands beside it."""
        out = _REFUSED if (chance.random() < 0.5) else _REFUSED | _TOOLS
        for name in [one for one in body if one in out or one.endswith(_GRAMMARS)]:
            if _mostly(chance):
                del body[name]
        forms = [one for one in body if one in _FORMS or one.startswith("guided_")]
        for name in forms[1 if _rarely(chance) else 0 :]:
            del body[name]
        for name in _SCHEMAS & body.keys():
            body[name] = chance.choice(_FORMATS)
        body["stream"] = chance.random() < 0.5
        for name in _POINTS & body.keys():
            body[name] = [[1, 20.5], [chance.randint(1, 9), 40.0]]
        for name in _COUNTS & body.keys():
            body[name] = chance.randint(1, 3)
        for name in ("messages", "input"):
            _settle(body.get(name), chance)
        for name in _TOKENS & body.keys():
            body[name] = _whole(body[name])
        if "previous_response_id" in body and _mostly(chance):
            body["previous_response_id"] = self._response()
        if case.operation.path.startswith("/api") and _mostly(chance):
            for name, said in (("prompt", "hi"), ("messages", [{"role": "user"}]), ("input", "hi")):
                body[name] = body.get(name) or said
        if "/responses" in case.operation.path and _mostly(chance):
            body["input"] = chance.choice(_INPUTS)
            body.pop("prompt", None)

    def _copied(self, body: dict[str, Any], chance: Random) -> None:
        if "source" in body or "destination" in body:
            _put(body, "source", MODELS, chance)
            _put(body, "destination", COPIES, chance)
            return
        _put(body, "from", MODELS, chance)
        _put(body, "model", COPIES, chance)
        if _mostly(chance):
            for name in ("files", "template", "stream", *NOT_BUILT):
                body.pop(name, None)

    def _path(self, case: Case, chance: Random) -> None:
        named, path = case.path_parameters, case.operation.path
        if "models/" in path and _mostly(chance):
            for name in named:
                named[name] = chance.choice(MODELS)
        elif "/responses/{id}" in path and _mostly(chance):
            named["id"] = self._response()
        elif "/requests/{id}" in path and _mostly(chance):
            named["id"] = REQUEST

    def _query(self, case: Case, chance: Random) -> None:
        for name in ("name", "model", "after_id", "before_id"):
            if name in case.query and _mostly(chance):
                case.query[name] = chance.choice(MODELS)
        if "types" in case.query and _mostly(chance):
            case.query["types"] = chance.choice(("reload", "load,evict", "lost", ""))

    def _headers(self, case: Case, chance: Random) -> None:
        if not _rarely(chance):
            case.headers.pop("If-Match", None)
            if "since" not in case.query:
                case.headers.pop("Last-Event-ID", None)
        if "X-Request-Priority" in case.headers and _mostly(chance):
            case.headers["X-Request-Priority"] = chance.choice(_PRIORITIES)
        if case.operation.path.endswith("/events") and case.method.upper() == "GET":
            case.headers["Accept"] = "application/json"


def _settle(value: Any, chance: Random) -> None:
    """What calls of tools were given is JSON in a string: most of it is to be that."""
    if isinstance(value, list):
        for one in value:
            _settle(one, chance)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name == "arguments" and isinstance(one, str) and _mostly(chance):
                value[name] = '{"a": 1}'
            else:
                _settle(one, chance)


def _whole(value: Any) -> Any:
    """2.0 is an integer to a JSON Schema, and no token."""
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _put(body: dict[str, Any], name: str, values: tuple[str, ...], chance: Random) -> None:
    if _mostly(chance):
        body[name] = chance.choice(values)


def _mostly(chance: Random) -> bool:
    return chance.random() < 0.8


def _rarely(chance: Random) -> bool:
    return chance.random() < 0.05
