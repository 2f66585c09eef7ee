"""The bodies of OpenAI's responses, by the tables that they are read with."""

from __future__ import annotations

from mlxd.dialects.common_shapes import JSON_SCHEMA, explained
from mlxd.dialects.openai.responses import items, own_tools, parts, request, tools
from mlxd.dialects.openai.shapes import effort, generating, scored
from mlxd.dialects.shaping import (
    COUNT,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    Schema,
    Shapes,
    always,
    answer,
    either,
    listed,
    mapping,
    one_of,
    or_null,
    question,
    refer,
    said,
    text,
    whole,
)

_NAMED = {"name": text(least=1)}
_STATUS = one_of(("completed", "incomplete", "in_progress"))


def shapes() -> Shapes:
    return {
        **_items(),
        **_tools(),
        "OpenAIResponseRequest": _asked(),
        "OpenAIResponse": _response(),
        **_output(),
        **_kept_items(),
        "OpenAIResponseEvent": _event(),
        "OpenAIInputTokens": answer(
            {"object": always("response.input_tokens"), "input_tokens": COUNT}
        ),
        "OpenAIInputItems": answer(
            {
                "object": always("list"),
                "data": listed(refer("OpenAIKeptItem")),
                "first_id": or_null(TEXT),
                "last_id": or_null(TEXT),
                "has_more": FLAG,
            }
        ),
        "OpenAIResponseDeleted": answer(
            {"id": TEXT, "object": always("response"), "deleted": always(True)}
        ),
    }


def _items() -> Shapes:
    """Those that a client sends."""
    part = either(
        question({"type": one_of(parts.TEXTS), "text": TEXT}),
        question({"type": always("refusal"), "refusal": TEXT}),
    )
    content = either(TEXT, listed(part))
    call = {"call_id": text(least=1), **_NAMED}
    output = {"call_id": text(least=1), "output": content}
    own = {"id": TEXT, "status": TEXT}
    thought = {"summary": content, "content": content, "encrypted_content": TEXT}
    return {
        "OpenAIItem": either(
            question(
                {"role": one_of(items.ROLES), "content": content}, {"type": always("message")} | own
            ),
            question({"type": always("reasoning")}, thought | own),
            question(
                {"type": always("function_call")} | call,
                {"arguments": TEXT, "namespace": TEXT} | own,
            ),
            question(
                {"type": always("custom_tool_call")} | call,
                {"input": TEXT, "namespace": TEXT} | own,
            ),
            question({"type": always("function_call_output")} | output, own),
            question({"type": always("custom_tool_call_output")} | output, own),
            *_own_tools(own),
            question(
                {"type": always("additional_tools"), "tools": listed(refer("OpenAIResponseTool"))},
                {"role": TEXT} | own,
            ),
            question({"type": always("item_reference"), "id": TEXT}),
            said(question({"type": one_of(sorted(items.NOT_FOR_THE_MODEL))}), "Passed over."),
        )
    }


def _own_tools(own: dict[str, Schema]) -> list[Schema]:
    """What earlier turns called of OpenAI's own, and what that gave."""
    called = {"call_id": text(least=1)}
    calls = [
        question({"type": always(kind)} | called, {name: OBJECT} | own)
        for kind, name in own_tools.CALLS.items()
        if kind != "computer_call"
    ]
    actions = {"action": OBJECT, "actions": listed(OBJECT)}
    return [
        *calls,
        question({"type": always("computer_call")} | called, actions | own),
        question(
            {"type": always("local_shell_call_output"), "output": TEXT}, {"call_id": TEXT} | own
        ),
        question(
            {"type": always("shell_call_output"), "output": either(TEXT, listed(_run()))} | called,
            own,
        ),
        question({"type": always("apply_patch_call_output")} | called, {"output": TEXT} | own),
        question({"type": always("computer_call_output"), "output": OBJECT} | called, own),
    ]


def _run() -> Schema:
    """Of one command in a shell."""
    outcome = question({}, {"type": TEXT, "exit_code": whole()})
    return question({}, {"stdout": TEXT, "stderr": TEXT, "outcome": outcome})


def _tools() -> Shapes:
    grammar = {"type": always("grammar"), "syntax": one_of(tools.SYNTAXES), "definition": TEXT}
    form = either(question({"type": always("text")}), question(grammar))
    function = question(
        {"type": always("function")} | _NAMED,
        {"description": TEXT, "parameters": OBJECT, "strict": FLAG},
    )
    custom = question({"type": always("custom")} | _NAMED, {"description": TEXT, "format": form})
    namespace = question(
        {"type": always("namespace")} | _NAMED,
        {"description": TEXT, "tools": listed(either(function, custom))},
    )
    hosted = question({"type": one_of(sorted(tools.HOSTED))})
    mode = {"mode": one_of(("auto", "required"))}
    chosen = listed(question(_NAMED, {"type": TEXT, "namespace": TEXT}))
    return {
        "OpenAIResponseTool": either(
            function, custom, namespace, said(hosted, "Left out beside others; alone refused.")
        ),
        "OpenAIResponseToolChoice": either(
            one_of(tools.CHOICES),
            question({"type": one_of(("function", "custom"))} | _NAMED, {"namespace": TEXT}),
            question({"type": always("allowed_tools")} | mode, {"tools": chosen}),
        ),
    }


def _asked() -> Schema:
    refused = {name: said({}, f"Refused: {why}.") for name, why in request.NOT_OFFERED.items()}
    metadata = mapping(text(request.LONGEST_VALUE)) | {
        "maxProperties": request.MOST_PAIRS,
        "propertyNames": {"maxLength": request.LONGEST_KEY},
    }
    thinking = {"effort": effort(), "summary": TEXT, "generate_summary": TEXT}
    return question(
        {"model": text(least=1)},
        {
            **generating(),
            "input": either(TEXT, listed(refer("OpenAIItem"))),
            "instructions": TEXT,
            "previous_response_id": TEXT,
            "include": TEXTS,
            "max_output_tokens": whole(1),
            "max_tool_calls": whole(1),
            "metadata": metadata,
            "parallel_tool_calls": FLAG,
            "prompt_cache_key": TEXT,
            "reasoning": question({}, thinking),
            "store": FLAG,
            "text": question({}, {"format": _format(), "verbosity": TEXT}),
            "tools": listed(refer("OpenAIResponseTool")),
            "tool_choice": refer("OpenAIResponseToolChoice"),
            "top_logprobs": whole(0, request.MOST_LOGPROBS),
            "truncation": one_of(("auto", "disabled")),
            "chat_template_kwargs": OBJECT,
            **refused,
        },
    )


def _format() -> Schema:
    described = {"name": TEXT, "description": TEXT, "strict": FLAG}
    return either(
        question({"type": one_of(("text", "json_object"))}),
        question({"type": always("json_schema"), "schema": JSON_SCHEMA}, described),
    )


def _response() -> Schema:
    details = answer({"reason": always("max_output_tokens")})
    failure = answer({"code": TEXT, "message": TEXT}, explained())
    return answer(
        {
            "id": TEXT,
            "object": always("response"),
            "created_at": COUNT,
            "completed_at": or_null(COUNT),
            "status": one_of(("completed", "failed", "in_progress", "incomplete")),
            "model": TEXT,
            "error": or_null(failure),
            "incomplete_details": or_null(details),
            "output": listed(refer("OpenAIOutputItem")),
            "usage": or_null(_usage()),
            **_settings(),
        }
    )


def _settings() -> dict[str, Schema]:
    """What an answer repeats of its request."""
    numbers = ("frequency_penalty", "presence_penalty", "temperature", "top_p")
    texts = (
        "instructions",
        "previous_response_id",
        "prompt_cache_key",
        "safety_identifier",
        "user",
    )
    shown_text = answer({"format": OBJECT, "verbosity": TEXT})
    return {
        **dict.fromkeys(numbers, or_null(NUMBER)),
        **dict.fromkeys(texts, or_null(TEXT)),
        "background": always(False),
        "max_output_tokens": or_null(COUNT),
        "max_tool_calls": or_null(COUNT),
        "metadata": OBJECT,
        "parallel_tool_calls": FLAG,
        "reasoning": answer({"effort": or_null(TEXT), "summary": or_null(TEXT)}),
        "service_tier": always("default"),
        "store": FLAG,
        "text": shown_text,
        "tool_choice": either(TEXT, OBJECT),
        "tools": listed(OBJECT),
        "top_logprobs": COUNT,
        "truncation": always("disabled"),
    }


def _usage() -> Schema:
    return answer(
        {
            "input_tokens": COUNT,
            "input_tokens_details": answer({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
            "output_tokens": COUNT,
            "output_tokens_details": answer({"reasoning_tokens": COUNT}),
            "total_tokens": COUNT,
        }
    )


def _output_text() -> Schema:
    return answer(
        {
            "type": always("output_text"),
            "text": TEXT,
            "annotations": listed(OBJECT, 0),
            "logprobs": listed(scored()),
        }
    )


def _output() -> Shapes:
    """Items of an answer."""
    thought = answer({"type": always("summary_text"), "text": TEXT})
    head = {"id": TEXT, "status": _STATUS}
    call = head | {"call_id": TEXT, "name": TEXT}
    message = {"role": always("assistant"), "content": listed(_output_text())}
    return {
        "OpenAIOutputItem": either(
            answer(head | {"type": always("message")} | message),
            answer(
                head | {"type": always("reasoning"), "summary": listed(thought)},
                {"encrypted_content": TEXT},
            ),
            answer(
                call | {"type": always("function_call"), "arguments": TEXT}, {"namespace": TEXT}
            ),
            answer(call | {"type": always("custom_tool_call"), "input": TEXT}, {"namespace": TEXT}),
        )
    }


def _kept_items() -> Shapes:
    """Items of a conversation, as they are listed: those of its answers, and those that came."""
    part = answer({"type": always("input_text"), "text": TEXT})
    spoken = either(part, _output_text())
    thought = answer({"type": one_of(("summary_text", "reasoning_text")), "text": TEXT})
    head = {"id": TEXT}
    call = head | {"call_id": TEXT, "name": TEXT, "status": TEXT}
    outputs = one_of(("function_call_output", "custom_tool_call_output", *own_tools.OUTPUTS))
    own_call = {"type": one_of(own_tools.CALLS), "call_id": TEXT, "status": TEXT}
    given = either(TEXT, listed(_run()), answer({"type": always("computer_screenshot")}))
    own_given = {"action": OBJECT, "actions": listed(OBJECT), "operation": OBJECT}
    message = {"role": one_of(items.ROLES), "status": TEXT, "content": listed(spoken)}
    return {
        "OpenAIKeptItem": either(
            answer(head | {"type": always("message")} | message),
            answer(
                head | {"type": always("reasoning"), "summary": listed(thought)},
                {"content": listed(thought), "encrypted_content": TEXT, "status": TEXT},
            ),
            answer(
                call | {"type": always("function_call"), "arguments": TEXT}, {"namespace": TEXT}
            ),
            answer(call | {"type": always("custom_tool_call"), "input": TEXT}, {"namespace": TEXT}),
            answer(head | own_call, own_given),
            answer(head | {"type": outputs, "call_id": TEXT, "output": given, "status": TEXT}),
            answer(
                head | {"type": always("additional_tools"), "role": TEXT, "tools": listed(OBJECT)}
            ),
        )
    }


def _event() -> Schema:
    """Of a stream: `type` says which of the others there are."""
    failure = {"message": TEXT, "type": TEXT, "param": or_null(TEXT), "code": TEXT}
    part = either(_output_text(), answer({"type": always("summary_text"), "text": TEXT}))
    numbers = ("output_index", "content_index", "summary_index")
    texts = ("item_id", "delta", "text", "arguments", "input", "code", "message")
    return answer(
        {"type": text(pattern=r"^(error$|response\.)"), "sequence_number": COUNT},
        {
            **dict.fromkeys(numbers, COUNT),
            **dict.fromkeys(texts, TEXT),
            "response": refer("OpenAIResponse"),
            "item": refer("OpenAIOutputItem"),
            "part": part,
            "logprobs": listed(scored()),
            "param": or_null(TEXT),
            "error": answer(failure, explained()),
        },
    )
