"""What form an answer must have: OpenAI's response_format, vLLM's and SGLang's ways to say more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import GenerationRequest
from mlxd.dialects.embedded import MOST_VALUES, decode_object, values_in
from mlxd.dialects.fields import Fields, Json

MOST_TEXTS = 1000
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


@dataclass(frozen=True, slots=True)
class _Form:
    """What one parameter asks for; `json` and `pattern` as in GenerationRequest."""

    param: str
    json: str | Json | None = None
    pattern: str = ""


def with_format(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    forms = [*_forms(fields)]
    if not forms:
        return request
    first, *others = forms
    if others:
        raise InvalidRequest(
            f"{first.param} and {others[0].param} cannot both say what form the answer has",
            param=others[0].param,
        )
    return replace(request, format=first.json, pattern=first.pattern)


def format_names(fields: Fields) -> dict[str, str]:
    """What the client calls the field that says what form the answer has, as in Call."""
    return {"pattern" if form.pattern else "format": form.param for form in _forms(fields)}


def _forms(fields: Fields) -> Iterator[_Form]:
    yield from _response_format(fields)
    yield from _constraints(fields, "guided_")
    yield from _structured(fields)
    yield from _in_sglangs_words(fields)


def _response_format(fields: Fields) -> Iterator[_Form]:
    wanted = fields.fields("response_format")
    if wanted is None:
        return
    match wanted.text("type"):
        case "text":
            pass
        case "json_object":
            yield _Form("response_format", wanted.mapping("schema") or "json")
        case "json_schema":
            described = wanted.fields("json_schema")
            if described is None:
                raise wanted.wrong("json_schema", "object")
            schema = described.mapping("schema")
            yield _Form("response_format", "json" if schema is None else schema)
        case _:
            raise InvalidRequest(
                "response_format.type must be text, json_object or json_schema",
                param="response_format.type",
            )


def _structured(fields: Fields) -> Iterator[_Form]:
    wanted = fields.fields("structured_outputs")
    if wanted is not None:
        yield from _constraints(wanted, "")


def _constraints(fields: Fields, prefix: str) -> Iterator[_Form]:
    """The same five, however they are called."""
    _refuse(fields, prefix + "grammar")
    _refuse(fields, prefix + "structural_tag")
    if fields.get(prefix + "json") is not None:
        yield _Form(fields.path(prefix + "json"), _schema(fields, prefix + "json"))
    if fields.flag(prefix + "json_object"):
        yield _Form(fields.path(prefix + "json_object"), "json")
    yield from _regex(fields, prefix + "regex")
    if fields.get(prefix + "choice") is not None:
        yield _Form(fields.path(prefix + "choice"), pattern=_one_of(fields, prefix + "choice"))


def _in_sglangs_words(fields: Fields) -> Iterator[_Form]:
    _refuse(fields, "ebnf")
    yield from _regex(fields, "regex")


def _refuse(fields: Fields, name: str) -> None:
    if fields.get(name):
        path = fields.path(name)
        raise UnsupportedFeature(f"{path} is not offered: use a schema or a regex", param=path)


def _regex(fields: Fields, name: str) -> Iterator[_Form]:
    if regex := fields.text(name):
        yield _Form(fields.path(name), pattern=regex)


def _schema(fields: Fields, name: str) -> Json:
    """An object, or one in a string."""
    value: Any = fields.get(name)
    if isinstance(value, str) and values_in(value) <= MOST_VALUES:
        value = decode_object(value)
    if not isinstance(value, dict):
        raise fields.wrong(name, "JSON schema")
    return value


def _one_of(fields: Fields, name: str) -> str:
    """A pattern for these texts, character by character."""
    texts, path = fields.texts(name), fields.path(name)
    if not texts or not all(texts):
        raise InvalidRequest(f"{path} must be texts that are not empty", param=path)
    if len(texts) > MOST_TEXTS:
        raise InvalidRequest(f"{path} takes at most {MOST_TEXTS} texts", param=path)
    return "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in texts)
