"""A body of /v1/responses -> mlxd's request, and what its answer repeats of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import GenerationRequest, Message, ToolChoice
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.efforts import read_effort
from mlxd.dialects.openai.errors import complain
from mlxd.dialects.openai.formats import format_names
from mlxd.dialects.openai.parameters import limited, read_request
from mlxd.dialects.openai.responses.items import ItemReader
from mlxd.dialects.openai.responses.tools import (
    check_names,
    offers,
    read_choice,
    read_tools,
    with_more,
)

LOGPROBS = "message.output_text.logprobs"
SEALED_REASONING = "reasoning.encrypted_content"
MOST_LOGPROBS = 20
MOST_PAIRS = 16
LONGEST_KEY = 64
LONGEST_VALUE = 512
NOT_OFFERED = {
    "background": "responses in the background are not offered: stream, or wait for the answer",
    "conversation": "conversations are not offered: go on with previous_response_id, or send all",
    "prompt": "stored prompts are not offered: send instructions and input",
}


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a request refers to, and does not bring along."""

    conversation: Sequence[Json] = ()
    """All items up to the end of `previous_response_id`, the oldest first."""
    items: Mapping[str, Json] = field(default_factory=dict)
    """Items that are referred to, by their ids; those that nobody keeps are missing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One parsed body."""

    request: GenerationRequest
    settings: Json
    """What the answer repeats."""
    items: list[Json]
    """The input of this turn, as it is kept."""
    names: dict[str, str]
    """What the client calls the field that says what form the answer has, as in Call."""


def references(body: Json) -> tuple[str | None, list[str]]:
    """`previous_response_id`, and the ids of the items that the input refers to."""
    previous, given = body.get("previous_response_id"), body.get("input")
    items = given if isinstance(given, list) else []
    ids = [item["id"] for item in items if isinstance(item, dict) and _refers(item)]
    return previous if isinstance(previous, str) and previous else None, ids


def read(body: Json, earlier: Earlier, *, keeps: bool) -> Asked:
    """Raises InvalidRequest. `keeps`: whether there is somewhere to keep the answer."""
    fields, request = read_request(body)
    for name, words in NOT_OFFERED.items():
        if fields.get(name):
            raise UnsupportedFeature(words, param=name)
    reader = ItemReader()
    messages, items = _conversation(fields, earlier, reader)
    tools = read_tools(fields, more=bool(reader.tools))
    check_names(tools)
    tools = with_more(tools, reader.tools)
    choice, offered, demand = read_choice(fields, offers(tools))
    settings = _settings(fields, request, keeps=keeps) | {"tools": tools, "tool_choice": choice}
    settings["parallel_tool_calls"] = demand.parallel
    text, form = _text(fields)
    request = replace(
        limited(_with_form(_with_thinking(fields, request), form), settings["max_output_tokens"]),
        messages=messages,
        tools=offered,
        tool_choice=demand if offered else ToolChoice(),
        logprobs=_logprobs_asked(fields, settings),
    )
    names = format_names(fields) if form is None else {"format": "text.format"}
    return Asked(request, settings | {"text": text}, items, names)


def _conversation(
    fields: Fields, earlier: Earlier, reader: ItemReader
) -> tuple[tuple[Message, ...], list[Json]]:
    """Its messages, and the items of this turn as they are kept."""
    instructions = fields.text("instructions")
    if instructions:
        reader.instruct(instructions)
    for item in earlier.conversation:
        reader.read_item(Fields(item, complain, "previous_response_id"))
    read = [_resolved(reader, item, earlier) for item in _input(fields)]
    messages = reader.messages()
    if not messages:
        raise InvalidRequest(
            "Missing required parameter: one of 'input' or 'previous_response_id'.", param="input"
        )
    return messages, [item for item in read if item is not None]


def _input(fields: Fields) -> list[Fields]:
    value = fields.get("input")
    if isinstance(value, str):
        message: Json = {"type": "message", "role": "user", "content": value}
        return [Fields(message, complain, "input")]
    if value is not None and not isinstance(value, list):
        raise fields.wrong("input", "string or array of items")
    return list(fields.each("input"))


def _resolved(reader: ItemReader, fields: Fields, earlier: Earlier) -> Json | None:
    if not _refers({name: fields.get(name) for name in ("type", "role", "id")}):
        return reader.read_item(fields)
    id = fields.text("id") or ""
    if id not in earlier.items:
        raise InvalidRequest(
            f"Item with id '{id[:128]}' not found: it is not kept, or not any more. Send the item.",
            param=fields.path("id"),
        )
    return reader.read_item(Fields(earlier.items[id], complain, fields.path("id")))


def _refers(item: Json) -> bool:
    kind = item.get("type")
    unsaid = kind is None and item.get("role") is None
    return (kind == "item_reference" or unsaid) and isinstance(item.get("id"), str)


def _settings(fields: Fields, request: GenerationRequest, *, keeps: bool) -> Json:
    sampling, fallback = request.sampling, request.fallback
    store = fields.flag("store")
    return {
        "background": False,
        "frequency_penalty": sampling.frequency_penalty or 0.0,
        "instructions": fields.text("instructions"),
        "max_output_tokens": fields.integer("max_output_tokens", low=1),
        "max_tool_calls": fields.integer("max_tool_calls", low=1),
        "metadata": _metadata(fields),
        "presence_penalty": sampling.presence_penalty or 0.0,
        "previous_response_id": fields.text("previous_response_id"),
        "prompt_cache_key": _said(fields, "prompt_cache_key"),
        "reasoning": _reasoning(fields),
        "safety_identifier": _said(fields, "safety_identifier"),
        "service_tier": "default",
        "store": keeps and store is not False,
        "temperature": _first(sampling.temperature, fallback.temperature),
        "top_logprobs": fields.integer("top_logprobs", low=0, high=MOST_LOGPROBS) or 0,
        "top_p": _first(sampling.top_p, fallback.top_p),
        "truncation": _truncation(fields),
        "user": _said(fields, "user"),
    }


def _first(said: float | None, assumed: float | None) -> float | None:
    return assumed if said is None else said


def _said(fields: Fields, name: str) -> Any:
    """Of fields that say nothing to mlxd: repeated where the type is right."""
    value = fields.get(name)
    return value if isinstance(value, str) else None


def _metadata(fields: Fields) -> Json:
    pairs = fields.mapping("metadata") or {}
    fits = len(pairs) <= MOST_PAIRS and all(
        len(key) <= LONGEST_KEY and isinstance(value, str) and len(value) <= LONGEST_VALUE
        for key, value in pairs.items()
    )
    if not fits:
        raise InvalidRequest(
            f"metadata takes at most {MOST_PAIRS} pairs of strings, keys of at most "
            f"{LONGEST_KEY} characters and values of at most {LONGEST_VALUE}",
            param="metadata",
        )
    return pairs


def _reasoning(fields: Fields) -> Json:
    """`ultra` is a client's own word: those that read the answer know `max`."""
    wanted = fields.fields("reasoning")
    if wanted is None:
        return {"effort": None, "summary": None}
    effort = wanted.text("effort")
    summary = wanted.text("summary") or wanted.text("generate_summary")
    return {"effort": "max" if effort == "ultra" else effort, "summary": summary}


def _truncation(fields: Fields) -> str:
    """`auto` is taken, and what is too long is refused all the same: so it is not repeated."""
    if fields.text("truncation") not in (None, "auto", "disabled"):
        raise InvalidRequest("truncation must be auto or disabled", param="truncation")
    return "disabled"


def _with_thinking(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    """`reasoning.effort` over the template's own switch."""
    options = dict(fields.mapping("chat_template_kwargs") or {})
    wanted = fields.fields("reasoning")
    think = read_effort(wanted, "effort") if wanted is not None else None
    if think is None and isinstance(options.get("enable_thinking"), bool):
        think = options["enable_thinking"]
    return replace(request, think=think, template_options=options)


def _text(fields: Fields) -> tuple[Json, str | Json | None]:
    """`text` as the answer repeats it, and the format that it asks for."""
    wanted = fields.fields("text")
    shown: Json = {"format": {"type": "text"}, "verbosity": "medium"}
    if wanted is None:
        return shown, None
    shown["verbosity"] = wanted.text("verbosity") or "medium"
    form = wanted.fields("format")
    if form is None:
        return shown, None
    match form.text("type"):
        case "text":
            return shown, None
        case "json_object":
            return shown | {"format": {"type": "json_object"}}, "json"
        case "json_schema":
            described = _described(form)
            return shown | {"format": described}, described["schema"]
        case _:
            pass
    raise InvalidRequest(
        "text.format.type must be text, json_object or json_schema", param="text.format.type"
    )


def _with_form(request: GenerationRequest, form: str | Json | None) -> GenerationRequest:
    if form is None:
        return request
    if request.format is not None or request.pattern:
        raise InvalidRequest(
            "only one parameter may say what form the answer has: text.format or another",
            param="text.format",
        )
    return replace(request, format=form)


def _described(form: Fields) -> Json:
    schema = form.mapping("schema")
    if schema is None:
        raise form.wrong("schema", "object")
    return {
        "type": "json_schema",
        "name": form.text("name") or "",
        "description": form.text("description"),
        "schema": schema,
        "strict": form.flag("strict") or False,
    }


def _logprobs_asked(fields: Fields, settings: Json) -> int | None:
    top: int = settings["top_logprobs"]
    included = fields.texts("include")
    return top if top or LOGPROBS in included else None
