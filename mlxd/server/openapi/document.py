"""Operations and shapes -> one OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from mlxd import __version__
from mlxd.dialects.anthropic.shapes import shapes as anthropics
from mlxd.dialects.base import to_json
from mlxd.dialects.common_shapes import shapes as common
from mlxd.dialects.ollama.shapes import shapes as ollamas
from mlxd.dialects.openai.responses.shapes import shapes as responses
from mlxd.dialects.openai.shapes import shapes as openais
from mlxd.dialects.shaping import Schema, either, refer
from mlxd.server.errors import STATUS
from mlxd.server.openapi import admin, anthropic, headers, ollama, openai, own, page
from mlxd.server.openapi.admin_shapes import shapes as admins
from mlxd.server.openapi.operation import JSON, Answer, Operation, Parameter, Tag
from mlxd.server.openapi.shapes import shapes as owns
from mlxd.server.page.token import HEADER

Json = dict[str, Any]

_TAGS: dict[Tag, str] = {
    "Ollama": "Ollama's API.",
    "OpenAI": "OpenAI's API.",
    "Anthropic": "Anthropic's API.",
    "mlxd": "What is mlxd's own.",
    "admin": "The admin side: on the admin socket, and over TCP to administrators.",
}
_ABOUT = (
    "A daemon that serves language models with MLX, in three dialects. HEAD works wherever GET"
    " does. A method that a path has not is 405, with `Allow`; OPTIONS is 204 everywhere, for"
    " pages whose origin is allowed (`clients.cors`). What is no valid HTTP is 400, what comes too"
    " slowly to be a request is 408, one connection too many is 503: each with `error` as a text,"
    " whatever the path. A"
    " failure behind a stream's status line is its last record. `x-mlxd-codes` are the errors that"
    " an operation may answer, as `X-Mlxd-Code` names them; `x-itemSchema` is the shape of each"
    " record of a stream, JSON behind `data:` or on a line."
)
_TCP: Json = {"url": "/"}
_SOCKET: Json = {
    "url": "http://localhost",
    "description": "Over the unix socket admin.sock in the daemon's state folder.",
}
_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_ANYBODY: list[Json] = [{}, *({name: []} for name in _SCHEMES)]
"""Whether a key is needed is policy: `clients.auth`."""
_PAGE: Json = {
    "page": {
        "type": "apiKey",
        "in": "header",
        "name": HEADER,
        "description": "The token that /ui/session gives the page, for what is under /admin.",
    }
}
_OWNERS: list[Json] = [*_ANYBODY, {"page": []}]
_OWNERS_WORDS = (
    "On the admin socket nothing is needed, and there alone; over TCP the key of a tenant with"
    " `clients.tenants.<name>.admin`, or the page's token."
)


def operations() -> list[Operation]:
    """Every one of them; each GET has a HEAD beside it."""
    tables = (ollama, openai, anthropic, own, page, admin)
    written = [operation for table in tables for operation in table.operations()]
    return [*written, *(_head_of(one) for one in written if one.method == "GET")]


def document() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlxd", "version": __version__, "description": _ABOUT},
        "servers": [_TCP],
        "security": _ANYBODY,
        "tags": [{"name": name, "description": words} for name, words in _TAGS.items()],
        "paths": _paths(operations()),
        "components": {
            "schemas": _shapes(),
            "responses": dict(_refusals()),
            "headers": headers.headers(),
            "securitySchemes": _SCHEMES | _PAGE,
        },
    }


def encoded() -> bytes:
    """As it is served."""
    return to_json(document())


def _shapes() -> dict[str, Schema]:
    named = (common, ollamas, openais, responses, anthropics, owns, page.shapes, admins)
    return {name: shape for shapes in named for name, shape in shapes().items()}


def _paths(found: Iterable[Operation]) -> Json:
    paths: Json = {}
    for operation in found:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return paths


def _described(operation: Operation) -> Json:
    described: Json = {
        "operationId": _id_of(operation),
        "summary": operation.words,
        "tags": [operation.tag],
    }
    if operation.parameters:
        described["parameters"] = [_parameter(one) for one in operation.parameters]
    if operation.asks:
        content = {kind: {"schema": shape} for kind, shape in operation.asks.items()}
        described["requestBody"] = {"required": not operation.bare, "content": content}
    described["responses"] = _responses(operation)
    described["x-mlxd-codes"] = sorted({error.code for error in operation.raises})
    if operation.for_owners:
        described["description"] = _OWNERS_WORDS
        described["servers"] = [_SOCKET, _TCP]
        described["security"] = _OWNERS
    if operation.open:
        described["security"] = []
    return described


def _id_of(operation: Operation) -> str:
    words = re.findall(r"\w+", operation.path) or ["root"]
    slash = ["slash"] if operation.path.endswith("/") and operation.path != "/" else []
    return "_".join([operation.method.lower(), *words, *slash])


def _parameter(parameter: Parameter) -> Json:
    told: Json = {"name": parameter.name, "in": parameter.place, "schema": parameter.shape}
    if parameter.place == "path":
        told["required"] = True
    return told | {"description": parameter.words} if parameter.words else told


def _responses(operation: Operation) -> Json:
    statuses = {STATUS[error.code] for error in operation.raises}
    told = {status: _answer(operation, answer) for status, answer in operation.answers.items()}
    for status in statuses - {*told}:
        told[status] = _refusal(operation, status)
    for status in statuses & {*operation.answers} if operation.method != "HEAD" else ():
        told[status]["content"].setdefault(JSON, {"schema": _error(operation.says)})
    return {str(status): told[status] for status in sorted(told)}


def _answer(operation: Operation, answer: Answer) -> Json:
    names = headers.of_answer(operation)
    told: Json = {"description": answer.words, "headers": _headers(names)}
    content = {
        kind: {"schema": shape}
        | ({"x-itemSchema": answer.records[kind]} if kind in answer.records else {})
        for kind, shape in answer.content.items()
    }
    return told | {"content": content} if content else told


def _refusal(operation: Operation, status: int) -> Json:
    if operation.method == "HEAD":
        return {"description": _words(status)}
    return {"$ref": f"#/components/responses/{_name(operation, status)}"}


def _name(operation: Operation, status: int) -> str:
    return f"{'Or'.join(operation.says)}{'Counted' if operation.counted else ''}{status}"


def _refusals() -> Iterator[tuple[str, Json]]:
    """One for each status and each way to say it."""
    wanted = {
        (
            _name(operation, STATUS[error.code]),
            STATUS[error.code],
            tuple(operation.says),
            operation.counted,
        )
        for operation in operations()
        for error in operation.raises
        if operation.method != "HEAD"
    }
    for name, status, says, counted in sorted(wanted):
        names = headers.of_refusal(status, counted=counted)
        content = {JSON: {"schema": _error(says)}}
        yield (
            name,
            {"description": _words(status), "headers": _headers(names), "content": content},
        )


def _error(says: Iterable[str]) -> Schema:
    shapes = [refer(f"{name}Error") for name in says]
    return shapes[0] if len(shapes) == 1 else either(*shapes)


def _words(status: int) -> str:
    """The codes that have it."""
    return ", ".join(code for code, known in STATUS.items() if known == status)


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _head_of(operation: Operation) -> Operation:
    """Says what GET would, but for its body."""
    answers = {status: Answer(told.words) for status, told in operation.answers.items()}
    return Operation(
        "HEAD", operation.path, f"The head of GET: {operation.words}", operation.tag, answers,
        operation.raises, parameters=operation.parameters, says=operation.says,
        open=operation.open, counted=operation.counted,
    )  # fmt: skip
