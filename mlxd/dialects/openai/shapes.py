"""The bodies of OpenAI's completions, embeddings and models, by the tables that they are read with.

Those of its responses are in responses/shapes.py.
"""

from __future__ import annotations

from mlxd.dialects.common_shapes import JSON_SCHEMA, KEEP_ALIVE, PRIORITY, STOP, USER, explained
from mlxd.dialects.openai import (
    chat,
    choices,
    completion,
    efforts,
    embeddings,
    errors,
    formats,
    messages,
    parameters,
)
from mlxd.dialects.shaping import (
    COUNT,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    WHOLE,
    Schema,
    Shapes,
    always,
    answer,
    either,
    listed,
    mapping,
    number,
    one_of,
    or_null,
    question,
    refer,
    said,
    text,
    whole,
)

_TOKEN_IDS = listed(whole(0, parameters.LARGEST_TOKEN_ID), least=1)
_FUNCTION = {"name": text(least=1)}
_REFUSED_FORM = said({}, "Refused: use a schema or a regex.")
_ON_PATHS = ("method_not_supported", "unknown_url")
"""What is said of a path or a method that is not there."""


def shapes() -> Shapes:
    return {
        "OpenAIError": answer({"error": refer("OpenAIErrorBody")}),
        "OpenAIErrorBody": _error(),
        **_conversation(),
        **_tools(),
        "OpenAIChatRequest": _chat_request(),
        "OpenAICompletionRequest": _completion_request(),
        "OpenAIEmbeddingsRequest": _embeddings_request(),
        **_told(),
        **_chunks(),
        **_embedded(),
        **_models(),
    }


def _error() -> Schema:
    codes = (code for _, code in errors.NAMES.values())
    return answer(
        {
            "message": TEXT,
            "type": one_of(kind for kind, _ in errors.NAMES.values()),
            "param": or_null(TEXT),
            "code": one_of((*codes, *_ON_PATHS)),
        },
        explained(),
    )


def _conversation() -> Shapes:
    part = either(
        question({"type": always("text"), "text": TEXT}),
        question({"type": always("refusal"), "refusal": TEXT}),
    )
    content = said(either(TEXT, listed(part)), "Parts that are no text are refused.")
    function = question(
        _FUNCTION,
        {
            "arguments": said(
                TEXT, "A JSON object, as a string; what is none is read as its `input`."
            )
        },
    )
    called = question({"function": function}, {"id": TEXT, "type": one_of(["function"])})
    plain = [role for role in messages.ROLES if role not in ("assistant", "tool", "function")]
    calls = {"tool_calls": listed(called, least=1)}
    answered = {"role": always("assistant")}
    more = _thoughts() | {"refusal": TEXT, "function_call": function, "name": TEXT}
    return {
        "OpenAIMessage": either(
            question({"role": one_of(plain), "content": content}, {"name": TEXT}),
            question(answered | {"content": content}, more | {"tool_calls": listed(called)}),
            question(answered | calls, more | {"content": content}),
            question(
                {"role": always("tool"), "content": content, "tool_call_id": text(least=1)},
                {"name": TEXT},
            ),
            question({"role": always("function"), "content": content} | _FUNCTION),
        )
    }


def _tools() -> Shapes:
    function = question(_FUNCTION, {"description": TEXT, "parameters": OBJECT})
    named = question({"function": question(_FUNCTION)}, {"type": one_of(["function"])})
    allowed = question({"tools": listed(named, least=1)}, {"mode": one_of(("auto", "required"))})
    return {
        "OpenAIFunction": function,
        "OpenAITool": question(
            {"function": refer("OpenAIFunction")}, {"type": one_of(["function"])}
        ),
        "OpenAIToolChoice": either(
            one_of(("none", "auto", "required")),
            question({"type": always("function"), "function": question(_FUNCTION)}),
            question({"type": always("allowed_tools"), "allowed_tools": allowed}),
        ),
    }


def generating() -> dict[str, Schema]:
    """What `read_request` reads, for every endpoint that generates."""
    return {
        "stream": FLAG,
        "stop": either(TEXT, listed(STOP, parameters.MOST_STOPS)),
        "temperature": number(0, 2),
        "top_p": number(0, 1),
        "top_k": whole(-1),
        "min_p": number(0, 1),
        "repetition_penalty": number(0.01, 100),
        "presence_penalty": number(-2, 2),
        "frequency_penalty": number(-2, 2),
        "logit_bias": _biases(),
        "seed": WHOLE,
        "min_tokens": COUNT,
        "ignore_eos": FLAG,
        "keep_alive": KEEP_ALIVE,
        "priority": PRIORITY,
        "service_tier": TEXT,
        "safety_identifier": USER,
        "user": USER,
        "response_format": _response_format(),
        **_constraints("guided_"),
        "structured_outputs": question({}, _constraints("")),
        "regex": TEXT,
        "ebnf": _REFUSED_FORM,
    }


def _biases() -> Schema:
    named = {"pattern": f"^{parameters.TOKEN_ID.pattern}$"}
    return mapping(number(-100, 100)) | {
        "propertyNames": named,
        "maxProperties": parameters.MOST_BIASES,
    }


def _response_format() -> Schema:
    described = question({}, {"name": TEXT, "schema": JSON_SCHEMA, "strict": FLAG})
    return either(
        question({"type": always("text")}),
        question({"type": always("json_object")}, {"schema": JSON_SCHEMA}),
        question({"type": always("json_schema"), "json_schema": described}),
    )


def _constraints(prefix: str) -> dict[str, Schema]:
    return {
        f"{prefix}json": either(JSON_SCHEMA, TEXT),
        f"{prefix}json_object": FLAG,
        f"{prefix}regex": TEXT,
        f"{prefix}choice": listed(text(least=1), formats.MOST_TEXTS, least=1),
        f"{prefix}grammar": _REFUSED_FORM,
        f"{prefix}structural_tag": _REFUSED_FORM,
    }


def _stream_options() -> Schema:
    return question({}, {"include_usage": FLAG, "include_obfuscation": FLAG})


def effort() -> Schema:
    return one_of(efforts.EFFORTS)


def _chat_request() -> Schema:
    choice = either(one_of(("none", "auto")), question(_FUNCTION))
    return question(
        {"model": text(least=1), "messages": listed(refer("OpenAIMessage"), least=1)},
        {
            **generating(),
            "stream_options": _stream_options(),
            "n": whole(1, choices.MOST),
            "max_tokens": whole(1),
            "max_completion_tokens": whole(1),
            "logprobs": FLAG,
            "top_logprobs": whole(0, chat.MOST_LOGPROBS),
            "tools": listed(refer("OpenAITool")),
            "tool_choice": refer("OpenAIToolChoice"),
            "parallel_tool_calls": FLAG,
            "functions": listed(refer("OpenAIFunction")),
            "function_call": choice,
            "reasoning_effort": effort(),
            "reasoning": question({}, {"effort": effort()}),
            "chat_template_kwargs": OBJECT,
            "modalities": said(TEXTS, "`audio` is refused."),
            "audio": said({}, "Refused."),
        },
    )


def _completion_request() -> Schema:
    forms = (
        said(TEXT, "Empty with `suffix` alone."),
        _TOKEN_IDS,
        listed(either(text(least=1), _TOKEN_IDS), choices.MOST_IN_ALL, least=1),
    )
    return question(
        {"model": text(least=1), "prompt": either(*forms)},
        {
            **generating(),
            "stream_options": _stream_options(),
            "suffix": TEXT,
            "echo": FLAG,
            "n": whole(1, choices.MOST),
            "best_of": whole(1, choices.MOST),
            "max_tokens": COUNT,
            "logprobs": whole(0, completion.MOST_LOGPROBS),
        },
    )


def _embeddings_request() -> Schema:
    one = either(text(least=1), _TOKEN_IDS)
    inputs = either(text(least=1), _TOKEN_IDS, listed(one, embeddings.MOST_INPUTS, least=1))
    return question(
        {"model": text(least=1), "input": inputs},
        {
            "dimensions": whole(1),
            "encoding_format": one_of(embeddings.ENCODINGS),
            "keep_alive": KEEP_ALIVE,
            "priority": PRIORITY,
            "service_tier": TEXT,
            "safety_identifier": USER,
            "user": USER,
        },
    )


def scored() -> Schema:
    """A token's log-probability, as chat completions and responses tell it."""
    alternative = {"token": TEXT, "logprob": NUMBER, "bytes": listed(whole(0, 255))}
    return answer(alternative | {"top_logprobs": listed(answer(alternative))})


def _lists() -> Schema:
    """Log-probabilities in the old form."""
    top = listed(or_null(mapping(NUMBER)))
    return answer(
        {
            "tokens": TEXTS,
            "token_logprobs": listed(or_null(NUMBER)),
            "top_logprobs": top,
            "text_offset": listed(COUNT),
        }
    )


def _envelope(kind: str) -> dict[str, Schema]:
    return {
        "id": TEXT,
        "object": always(kind),
        "created": COUNT,
        "model": TEXT,
        "system_fingerprint": or_null(TEXT),
    }


def _usage() -> Schema:
    return answer(
        {
            "prompt_tokens": COUNT,
            "completion_tokens": COUNT,
            "total_tokens": COUNT,
            "prompt_tokens_details": answer({"cached_tokens": COUNT}),
            "completion_tokens_details": answer({"reasoning_tokens": COUNT}),
        }
    )


def _finish(*reasons: str) -> Schema:
    return one_of(("stop", "length", *reasons))


def _thoughts() -> dict[str, Schema]:
    return {"reasoning": TEXT, "reasoning_content": TEXT}


def _told() -> Shapes:
    function = answer({"name": TEXT, "arguments": TEXT})
    called = answer({"id": TEXT, "type": always("function"), "function": function})
    message = answer(
        {"role": always("assistant"), "content": or_null(TEXT), "refusal": or_null(TEXT)},
        _thoughts() | {"tool_calls": listed(called), "function_call": function},
    )
    entries = answer({"content": listed(scored()), "refusal": or_null(TEXT)})
    choice = {"index": COUNT, "message": message, "logprobs": or_null(entries)}
    reason = _finish("tool_calls", "function_call")
    plain = {"index": COUNT, "text": TEXT, "logprobs": or_null(_lists())}
    tier = {"service_tier": TEXT}
    return {
        "OpenAIUsage": _usage(),
        "OpenAIChatCompletion": answer(
            _envelope("chat.completion")
            | {"choices": listed(answer(choice | {"finish_reason": reason}))}
            | {"usage": refer("OpenAIUsage")},
            tier,
        ),
        "OpenAICompletion": answer(
            _envelope("text_completion")
            | {"choices": listed(answer(plain | {"finish_reason": _finish()}))}
            | {"usage": refer("OpenAIUsage")}
        ),
    }


def _chunks() -> Shapes:
    function = answer({"name": TEXT, "arguments": TEXT})
    piece = {"index": COUNT, "id": TEXT, "type": always("function"), "function": function}
    delta = answer(
        {},
        {"role": always("assistant"), "content": or_null(TEXT)}
        | _thoughts()
        | {"tool_calls": listed(answer(piece)), "function_call": function},
    )
    entries = answer({"content": listed(scored()), "refusal": or_null(TEXT)})
    reason = or_null(_finish("tool_calls", "function_call"))
    choice = {"index": COUNT, "delta": delta, "logprobs": or_null(entries), "finish_reason": reason}
    plain = {"index": COUNT, "text": TEXT, "logprobs": or_null(_lists())}
    ends = {"usage": or_null(refer("OpenAIUsage")), "obfuscation": TEXT}
    return {
        "OpenAIChatChunk": answer(
            _envelope("chat.completion.chunk") | {"choices": listed(answer(choice))},
            ends | {"service_tier": TEXT},
        ),
        "OpenAICompletionChunk": answer(
            _envelope("text_completion")
            | {"choices": listed(answer(plain | {"finish_reason": or_null(_finish())}))},
            ends,
        ),
    }


def _embedded() -> Shapes:
    vector = either(listed(NUMBER), said(TEXT, "Base64 of float32, the low end first."))
    one = answer({"object": always("embedding"), "index": COUNT, "embedding": vector})
    return {
        "OpenAIEmbeddings": answer(
            {
                "object": always("list"),
                "data": listed(one),
                "model": TEXT,
                "usage": answer({"prompt_tokens": COUNT, "total_tokens": COUNT}),
            }
        )
    }


def _models() -> Shapes:
    return {
        "OpenAIModel": answer(
            {"id": TEXT, "object": always("model"), "created": WHOLE, "owned_by": TEXT}
        ),
        "OpenAIModels": answer({"object": always("list"), "data": listed(refer("OpenAIModel"))}),
    }
