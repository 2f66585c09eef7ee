"""The bodies of Anthropic's API, by the tables that they are read with."""

from __future__ import annotations

from mlxd.dialects.anthropic import errors, messages, parameters
from mlxd.dialects.anthropic.client_tools import KNOWN
from mlxd.dialects.common_shapes import (
    ARGUMENTS,
    JSON_SCHEMA,
    KEEP_ALIVE,
    PRIORITY,
    STOP,
    explained,
)
from mlxd.dialects.shaping import (
    COUNT,
    FLAG,
    OBJECT,
    TEXT,
    TIME,
    Schema,
    Shapes,
    always,
    answer,
    either,
    listed,
    number,
    one_of,
    or_null,
    question,
    refer,
    said,
    text,
    whole,
)

_NAMED = {"name": text(least=1)}


def shapes() -> Shapes:
    failure = answer({"type": one_of(errors.NAMES.values()), "message": TEXT}, explained())
    return {
        "AnthropicError": answer(
            {"type": always("error"), "error": failure, "request_id": or_null(TEXT)}
        ),
        **_conversation(),
        **_tools(),
        **_asked(),
        **_told(),
        **_events(),
        **_models(),
    }


def _conversation() -> Shapes:
    def turn(role: str, block: str) -> Schema:
        content = either(TEXT, listed(refer(block)))
        return question({"role": always(role), "content": content})

    blocks = {"user": "AnthropicAskedBlock", "assistant": "AnthropicAnsweredBlock"}
    return {
        **_blocks(),
        "AnthropicMessage": either(
            *(turn(role, blocks.get(role, "AnthropicAskedBlock")) for role in messages.ROLES)
        ),
    }


def _blocks() -> Shapes:
    """What says something; and what beside that stands in a question, or in an answer."""
    kept = {"cache_control": OBJECT}
    content = either(TEXT, listed(refer("AnthropicBlock")))
    source = either(
        question({"type": always("text")}, {"data": TEXT}),
        question({"type": always("content")}, {"content": content}),
    )
    found = {"content": content, "title": TEXT, "source": TEXT}
    call = {"type": always("tool_use"), "id": text(least=1), **_NAMED}
    result = {"type": always("tool_result"), "tool_use_id": text(least=1)}
    passed_over = question({"type": one_of(messages.NOT_FOR_THE_MODEL)})
    return {
        "AnthropicBlock": either(
            question({"type": always("text"), "text": TEXT}, kept),
            question(
                {"type": always("document"), "source": source},
                {"title": TEXT, "context": TEXT} | kept,
            ),
            question({"type": always("search_result")}, found | kept),
            question({"type": always("compaction")}, {"content": TEXT}),
            question({"type": always("tool_reference"), "tool_name": text(least=1)}),
        ),
        "AnthropicAskedBlock": either(
            refer("AnthropicBlock"),
            question(result, {"content": content, "is_error": FLAG} | kept),
        ),
        "AnthropicAnsweredBlock": either(
            refer("AnthropicBlock"),
            question({"type": always("thinking")}, {"thinking": TEXT, "signature": TEXT}),
            question(call, {"input": ARGUMENTS} | kept),
            said(passed_over, "Passed over."),
        ),
    }


def _tools() -> Shapes:
    alone = {"disable_parallel_tool_use": FLAG}
    return {
        "AnthropicTool": either(
            question(
                {**_NAMED, "input_schema": JSON_SCHEMA},
                {"type": one_of(["custom"]), "description": TEXT, "cache_control": OBJECT},
            ),
            question({**_NAMED, "type": text(pattern=f"^{KNOWN}$")}, {"cache_control": OBJECT}),
        ),
        "AnthropicToolChoice": either(
            question({"type": one_of(("auto", "any", "none"))}, alone),
            question({"type": always("tool"), **_NAMED}, alone),
        ),
    }


def _asked() -> Shapes:
    return {
        "AnthropicMessagesRequest": question(
            _needed() | {"max_tokens": said(COUNT, "0: the prompt is read, and nothing answered.")},
            _prompt() | _drawn(),
        ),
        "AnthropicCountRequest": question(_needed(), _prompt()),
    }


def _needed() -> dict[str, Schema]:
    return {"model": text(least=1), "messages": listed(refer("AnthropicMessage"), least=1)}


def _prompt() -> dict[str, Schema]:
    """All that makes the prompt, as `read_prompt` reads it."""
    thinking = question({"type": one_of(parameters.THINKING)}, {"budget_tokens": whole(1)})
    output = {"effort": one_of(parameters.EFFORTS), "format": _format()}
    return {
        "system": either(TEXT, listed(refer("AnthropicBlock"))),
        "tools": listed(refer("AnthropicTool")),
        "tool_choice": refer("AnthropicToolChoice"),
        "thinking": thinking,
        "output_config": question({}, output),
        "metadata": question({}, {"user_id": TEXT}),
        "mcp_servers": said(listed({}, 0), "Refused."),
        "priority": PRIORITY,
    }


def _drawn() -> dict[str, Schema]:
    """How an answer is drawn, as `with_sampling` reads it."""
    return {
        "stop_sequences": listed(STOP, parameters.MOST_STOPS),
        "temperature": number(0, 2),
        "top_p": number(0, 1),
        "top_k": whole(-1),
        "output_format": _format(),
        "keep_alive": KEEP_ALIVE,
        "stream": FLAG,
    }


def _format() -> Schema:
    return question({"type": always("json_schema"), "schema": JSON_SCHEMA})


def _usage() -> Schema:
    return answer(
        {
            "input_tokens": COUNT,
            "cache_creation_input_tokens": COUNT,
            "cache_read_input_tokens": COUNT,
            "output_tokens": COUNT,
        },
        {"output_tokens_details": answer({"thinking_tokens": COUNT})},
    )


def _stop() -> dict[str, Schema]:
    reasons = (
        *("end_turn", "max_tokens", "model_context_window_exceeded"),
        *("stop_sequence", "tool_use"),
    )
    return {"stop_reason": or_null(one_of(reasons)), "stop_sequence": or_null(TEXT)}


def _told() -> Shapes:
    thought = {"type": always("thinking"), "thinking": TEXT, "signature": TEXT}
    call = {"type": always("tool_use"), "id": TEXT, "name": TEXT, "input": OBJECT}
    return {
        "AnthropicUsage": _usage(),
        "AnthropicAnswerBlock": either(
            answer({"type": always("text"), "text": TEXT}), answer(thought), answer(call)
        ),
        "AnthropicAnswer": answer(
            {
                "id": TEXT,
                "type": always("message"),
                "role": always("assistant"),
                "model": TEXT,
                "content": listed(refer("AnthropicAnswerBlock")),
                **_stop(),
                "usage": refer("AnthropicUsage"),
            }
        ),
        "AnthropicCount": answer({"input_tokens": COUNT}),
    }


def _events() -> Shapes:
    """Of a stream."""
    at = {"index": COUNT}
    delta = either(
        answer({"type": always("text_delta"), "text": TEXT}),
        answer({"type": always("thinking_delta"), "thinking": TEXT}),
        answer({"type": always("signature_delta"), "signature": TEXT}),
        answer({"type": always("input_json_delta"), "partial_json": TEXT}),
    )
    start = {"content_block": refer("AnthropicAnswerBlock")}
    end = {"delta": answer(_stop()), "usage": refer("AnthropicUsage")}
    return {
        "AnthropicEvent": either(
            answer({"type": always("message_start"), "message": refer("AnthropicAnswer")}),
            answer({"type": always("content_block_start")} | at | start),
            answer({"type": always("content_block_delta"), "delta": delta} | at),
            answer({"type": always("content_block_stop")} | at),
            answer({"type": always("message_delta")} | end),
            answer({"type": one_of(("message_stop", "ping"))}),
            refer("AnthropicError"),
        )
    }


def _models() -> Shapes:
    return {
        "AnthropicModel": answer(
            {
                "type": always("model"),
                "id": TEXT,
                "display_name": TEXT,
                "created_at": TIME,
                "lifecycle": always("active"),
                "max_input_tokens": COUNT,
                "max_tokens": COUNT,
            }
        ),
        "AnthropicModels": answer(
            {
                "data": listed(refer("AnthropicModel")),
                "has_more": FLAG,
                "first_id": or_null(TEXT),
                "last_id": or_null(TEXT),
            }
        ),
    }
