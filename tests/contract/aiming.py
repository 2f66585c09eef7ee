"""Where made-up requests are to go: most of them to something that is there, so that they do more
than be refused for a name. What would be slow, or reach outside, is left to few of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from schemathesis import Case

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

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Aim:
    """Knows what is there."""

    def __init__(self, response: Callable[[], str]) -> None:
        """`response` makes a kept one, and returns its id."""
        self._response = response

    def at(self, case: Case, draw: Draw) -> None:
        """Changes the case."""
        if isinstance(case.body, dict):
            self._body(case, case.body, draw)
        elif isinstance(case.body, bytes) and _mostly(draw):
            case.path_parameters["digest"] = f"sha256:{hashlib.sha256(case.body).hexdigest()}"
        self._path(case, draw)
        self._query(case, draw)
        self._headers(case, draw)

    def _body(self, case: Case, body: dict[str, Any], draw: Draw) -> None:
        path = case.operation.path
        if path.endswith(("/copy", "/create")):
            self._copied(body, draw)
        elif path.endswith("/delete"):
            _put(body, "model", (*COPIES, "tiny-a"), draw)
            body.pop("name", None)
        elif path.endswith("/pull"):
            if "/" in str(body.get("model")) or _rarely(draw):
                body["model"] = REPOSITORY
            elif _mostly(draw):
                body["model"] = "nobody nothing"
        elif "bodies" not in path:
            _put(body, "model", MODELS, draw)
            if _mostly(draw):
                body.pop("name", None)
            if not _rarely(draw):
                self._tame(case, body, draw)
        if not _rarely(draw):
            body.pop("keep_alive", None)

    def _tame(self, case: Case, body: dict[str, Any], draw: Draw) -> None:
        """Without what is right by itself, and refused for what stands beside it."""
        out = _REFUSED if draw(st.booleans()) else _REFUSED | _TOOLS
        for name in [one for one in body if one in out or one.endswith(_GRAMMARS)]:
            if _mostly(draw):
                del body[name]
        forms = [one for one in body if one in _FORMS or one.startswith("guided_")]
        for name in forms[1 if _rarely(draw) else 0 :]:
            del body[name]
        for name in _SCHEMAS & body.keys():
            body[name] = draw(st.sampled_from(_FORMATS))
        body["stream"] = draw(st.booleans())
        for name in _COUNTS & body.keys():
            body[name] = draw(st.integers(1, 3))
        for name in _TOKENS & body.keys():
            body[name] = _whole(body[name])
        if "previous_response_id" in body and _mostly(draw):
            body["previous_response_id"] = self._response()
        if "/responses" in case.operation.path and _mostly(draw):
            body["input"] = draw(st.sampled_from(_INPUTS))
            body.pop("prompt", None)

    def _copied(self, body: dict[str, Any], draw: Draw) -> None:
        if "source" in body or "destination" in body:
            _put(body, "source", MODELS, draw)
            _put(body, "destination", COPIES, draw)
            return
        _put(body, "from", MODELS, draw)
        _put(body, "model", COPIES, draw)
        if _mostly(draw):
            body.pop("files", None)

    def _path(self, case: Case, draw: Draw) -> None:
        named, path = case.path_parameters, case.operation.path
        if "models/" in path and _mostly(draw):
            for name in named:
                named[name] = draw(st.sampled_from(MODELS))
        elif "/responses/{id}" in path and _mostly(draw):
            named["id"] = self._response()
        elif "/requests/{id}" in path and _mostly(draw):
            named["id"] = REQUEST

    def _query(self, case: Case, draw: Draw) -> None:
        for name in ("name", "model", "after_id", "before_id"):
            if name in case.query and _mostly(draw):
                case.query[name] = draw(st.sampled_from(MODELS))
        if "types" in case.query and _mostly(draw):
            case.query["types"] = draw(st.sampled_from(("reload", "load,evict", "lost", "")))

    def _headers(self, case: Case, draw: Draw) -> None:
        if not _rarely(draw):
            case.headers.pop("If-Match", None)
            if "since" not in case.query:
                case.headers.pop("Last-Event-ID", None)
        if "X-Request-Priority" in case.headers and _mostly(draw):
            case.headers["X-Request-Priority"] = draw(st.sampled_from(_PRIORITIES))
        if case.operation.path.endswith("/events") and case.method.upper() == "GET":
            case.headers["Accept"] = "application/json"


def _whole(value: Any) -> Any:
    """2.0 is an integer to a JSON Schema, and no token."""
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _put(body: dict[str, Any], name: str, values: tuple[str, ...], draw: Draw) -> None:
    if _mostly(draw):
        body[name] = draw(st.sampled_from(values))


def _mostly(draw: Draw) -> bool:
    return bool(draw(st.integers(0, 9)) < 8)


def _rarely(draw: Draw) -> bool:
    return bool(draw(st.integers(0, 19)) == 19)
