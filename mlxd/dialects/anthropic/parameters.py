"""What both of Anthropic's endpoints read alike, and how an answer is to be drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.dialects.anthropic.errors import complain, missing, required
from mlxd.dialects.anthropic.messages import Conversation
from mlxd.dialects.anthropic.tools import read_tools
from mlxd.dialects.fields import Fields, Json, check_stops
from mlxd.dialects.keep_alive import keep_alive
from mlxd.dialects.standing import priority, user

FALLBACK = Sampling(temperature=1.0, top_p=1.0)

EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}
THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}
MOST_STOPS = 64


def read_prompt(body: dict[str, Any]) -> tuple[Fields, GenerationRequest]:
    """All that makes the prompt; how it is answered is still missing."""
    fields = Fields(body, complain)
    model = required(fields, "model")
    if fields.array("mcp_servers"):
        raise UnsupportedFeature("mcp_servers: not offered here", param="mcp_servers")
    conversation = Conversation(fields)
    tools, choice = read_tools(fields)
    about = fields.get("metadata")
    request = GenerationRequest(
        model=model,
        messages=conversation.messages,
        continue_last=conversation.goes_on,
        tools=tools,
        tool_choice=choice,
        priority=priority(fields),
        user=user(Fields(about, complain), "user_id") if isinstance(about, dict) else "",
        stream=False,
    )
    return fields, _with_thinking(fields, request)


def with_sampling(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    """The same, with how its answer is drawn."""
    return replace(
        request,
        max_tokens=_max_tokens(fields),
        stop=_stop(fields),
        sampling=_sampling(fields),
        fallback=FALLBACK,
        format=_format(fields),
        keep_alive=keep_alive(fields),
        stream=fields.flag("stream") or False,
    )


def _with_thinking(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    """As there, a model thinks when it is told to. An effort that it makes without thinking is its
    template's matter.
    """
    effort = _effort(fields)
    if not _thinking(fields):
        options = {} if effort is None else {"reasoning_effort": effort}
        return replace(request, think=False, template_options=options)
    return replace(request, think=True if effort is None else effort)


def _thinking(fields: Fields) -> bool:
    thinking = fields.fields("thinking")
    if thinking is None:
        return False
    kind = thinking.text("type")
    if kind not in THINKING:
        raise InvalidRequest(
            f"thinking.type: expected one of {', '.join(THINKING)}", param="thinking.type"
        )
    thinking.integer("budget_tokens", low=1)
    return THINKING[kind]


def _effort(fields: Fields) -> str | None:
    config = fields.fields("output_config")
    effort = None if config is None else config.text("effort")
    if effort is None:
        return None
    if effort not in EFFORTS:
        raise InvalidRequest(
            f"output_config.effort: expected one of {', '.join(EFFORTS)}",
            param="output_config.effort",
        )
    return EFFORTS[effort]


def format_name(fields: Fields) -> str:
    """What the client calls the schema that its answer is held to."""
    wanted = _format_fields(fields)
    return "output_config.format.schema" if wanted is None else wanted.path("schema")


def _format(fields: Fields) -> Json | None:
    wanted = _format_fields(fields)
    if wanted is None:
        return None
    if wanted.text("type") != "json_schema":
        path = wanted.path("type")
        raise InvalidRequest(f"{path}: expected json_schema", param=path)
    schema = wanted.mapping("schema")
    if schema is None:
        raise missing(wanted, "schema")
    return schema


def _format_fields(fields: Fields) -> Fields | None:
    """Of `output_config`, or where earlier clients have it."""
    config = fields.fields("output_config")
    wanted = None if config is None else config.fields("format")
    return fields.fields("output_format") if wanted is None else wanted


def _max_tokens(fields: Fields) -> int:
    """0: no answer is wanted."""
    value = fields.integer("max_tokens", low=0)
    if value is None:
        raise missing(fields, "max_tokens")
    return value


def _sampling(fields: Fields) -> Sampling:
    top_k = fields.integer("top_k", low=-1)
    return Sampling(
        temperature=fields.number("temperature", low=0.0, high=2.0),
        top_p=fields.number("top_p", low=0.0, high=1.0),
        top_k=None if top_k is None else max(top_k, 0),
    )


def _stop(fields: Fields) -> tuple[str, ...]:
    strings = fields.texts("stop_sequences")
    if len(strings) > MOST_STOPS:
        raise InvalidRequest(
            f"stop_sequences takes at most {MOST_STOPS} strings", param="stop_sequences"
        )
    check_stops(strings, "stop_sequences")
    return tuple(text for text in strings if text)
