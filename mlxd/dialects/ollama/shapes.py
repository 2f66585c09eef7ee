"""The bodies of Ollama's API, by the tables that they are read with."""

from __future__ import annotations

from mlxd.dialects.common_shapes import (
    ARGUMENTS,
    JSON_SCHEMA,
    KEEP_ALIVE,
    PRIORITY,
    STOP,
    USER,
)
from mlxd.dialects.ollama import create, embed, options, prompt, request
from mlxd.dialects.shaping import (
    COUNT,
    FLAG,
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    TIME,
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

_REFUSED_IMAGES = said(TEXTS, "Refused: models read text only.")
_MODEL = {"model": said(TEXT, "Its name, an alias, or a chain of models.yaml.")}


def shapes() -> Shapes:
    return {
        "OllamaError": answer({"error": TEXT}),
        "OllamaStreamError": said(
            answer({"error": TEXT, "code": TEXT}), "The last record of a stream that failed."
        ),
        **_conversation(),
        **_asked(),
        **_managed(),
        **_records(),
        **_listed(),
    }


def _conversation() -> Shapes:
    function = question({"name": text(least=1)}, {"arguments": ARGUMENTS})
    described = question({"name": text(least=1)}, {"description": TEXT, "parameters": OBJECT})
    return {
        "OllamaMessage": question(
            {"role": one_of(request.ROLES)},
            {
                "content": TEXT,
                "thinking": TEXT,
                "images": _REFUSED_IMAGES,
                "tool_calls": listed(question({"function": function}, {"id": TEXT})),
                "tool_name": TEXT,
                "tool_call_id": TEXT,
            },
        ),
        "OllamaTool": question({"function": described}, {"type": one_of(["function"])}),
        "OllamaOptions": question({}, _options()),
    }


def _options() -> dict[str, Schema]:
    """As `read_options` reads them; fractions of integers are cut."""
    integers = ("num_predict", "num_ctx", "top_k", "repeat_last_n", "seed")
    numbers = (
        *("temperature", "top_p", "min_p"),
        *("repeat_penalty", "presence_penalty", "frequency_penalty"),
    )
    idle = said(NUMBER, "Taken, and without effect.")
    return {
        **dict.fromkeys(integers, WHOLE),
        **dict.fromkeys(numbers, NUMBER),
        "stop": listed(STOP, options.MOST_STOPS),
        **dict.fromkeys((*options.LOAD_INTEGERS, *options.IDLE_INTEGERS), idle | WHOLE),
        **dict.fromkeys(options.IDLE_FLOATS, idle),
        **dict.fromkeys(options.LOAD_FLAGS, idle | FLAG),
    }


def _common() -> dict[str, Schema]:
    """What both generating paths take."""
    return {
        "options": refer("OllamaOptions"),
        "stream": said(FLAG, "false: one object in place of records."),
        "think": either(FLAG, one_of(("", *request.EFFORTS))),
        "format": either(one_of(("", "json")), JSON_SCHEMA),
        "logprobs": FLAG,
        "top_logprobs": whole(0, request.MOST_LOGPROBS),
        "keep_alive": KEEP_ALIVE,
        "priority": PRIORITY,
        "user": USER,
        "truncate": FLAG,
        "shift": FLAG,
        "_debug_render_only": said(FLAG, "true: how the prompt reads, and nothing is run."),
    }


def _asked() -> Shapes:
    embedding = {
        "options": refer("OllamaOptions"),
        "keep_alive": KEEP_ALIVE,
        "priority": PRIORITY,
        "user": USER,
    }
    inputs = either(TEXT, listed(TEXT, embed.MOST_INPUTS))
    return {
        "OllamaGenerateRequest": question({}, _MODEL | _prompt() | _common()),
        "OllamaChatRequest": question(
            _MODEL,
            {"messages": listed(refer("OllamaMessage")), "tools": listed(refer("OllamaTool"))}
            | _common(),
        ),
        "OllamaEmbedRequest": question(
            _MODEL, {"input": inputs, "truncate": FLAG, "dimensions": WHOLE} | embedding
        ),
        "OllamaEmbeddingsRequest": question(_MODEL, {"prompt": TEXT} | embedding),
    }


def _prompt() -> dict[str, Schema]:
    return {
        "prompt": said(TEXT, "Empty: the model is loaded, or with `keep_alive` 0 let go."),
        "suffix": said(TEXT, "What follows the gap that is to be filled."),
        "system": TEXT,
        "template": said(text(prompt.LONGEST_TEMPLATE), "A chat template in Jinja."),
        "context": listed(whole(0, prompt.LAST_ID - 1)),
        "raw": FLAG,
        "images": _REFUSED_IMAGES,
        "category": said(TEXT, "A chain of models.yaml, where `model` is empty."),
        "max_tokens": WHOLE,
        "temperature": number(0, 100),
    }


def _managed() -> Shapes:
    """Of the paths that change which models there are."""
    digest = text(pattern=f"^{create.DIGEST.pattern}$")
    files = mapping(digest) | {
        "maxProperties": create.MOST_FILES,
        "propertyNames": {"pattern": f"^{create.FILE.pattern}$"},
    }
    named = _MODEL | {"name": said(TEXT, "In place of `model`.")}
    return {
        "OllamaShowRequest": question({}, named | {"verbose": FLAG}),
        "OllamaPullRequest": question({}, named | {"stream": FLAG}),
        "OllamaCopyRequest": question({"source": TEXT, "destination": TEXT}),
        "OllamaDeleteRequest": question({}, named),
        "OllamaPushRequest": question({}, named),
        "OllamaCreateRequest": question(
            {},
            {
                **named,
                "from": said(TEXT, "The model that it is made of."),
                "files": said(files, "Names in the model's folder, and digests of uploaded files."),
                "template": text(prompt.LONGEST_TEMPLATE),
                "system": TEXT,
                "parameters": refer("OllamaOptions"),
                "messages": listed(refer("OllamaMessage")),
                "license": either(TEXT, TEXTS),
                "stream": FLAG,
                **{name: said({}, f"Refused: {why}.") for name, why in create.NOT_BUILT.items()},
            },
        ),
    }


def _records() -> Shapes:
    call = answer({"index": COUNT, "name": TEXT, "arguments": OBJECT})
    alternative = {"token": TEXT, "logprob": NUMBER, "bytes": listed(whole(0, 255))}
    scored = answer(alternative, {"top_logprobs": listed(answer(alternative))})
    said_by_model = {
        "thinking": TEXT,
        "tool_calls": listed(answer({"id": TEXT, "function": call})),
    }
    head = {"model": TEXT, "created_at": TIME, "done": FLAG}
    rest = _end() | {
        "logprobs": listed(scored),
        "_debug_info": answer({"rendered_template": TEXT, "image_count": COUNT}),
    }
    message = answer({"role": always("assistant"), "content": TEXT}, said_by_model)
    vector = listed(NUMBER)
    return {
        "OllamaGenerateRecord": answer(head | {"response": TEXT}, rest | said_by_model),
        "OllamaChatRecord": answer(head | {"message": message}, rest),
        "OllamaEmbedAnswer": answer(
            {"model": TEXT, "embeddings": listed(vector)},
            {"total_duration": COUNT, "load_duration": COUNT, "prompt_eval_count": COUNT},
        ),
        "OllamaEmbeddingsAnswer": answer({"embedding": vector}),
        "OllamaProgress": answer(
            {"status": TEXT}, {"digest": TEXT, "total": COUNT, "completed": COUNT}
        ),
    }


def _end() -> dict[str, Schema]:
    """What the last record adds. Durations are in nanoseconds."""
    durations = ("total", "load", "prompt_eval", "eval")
    return {
        "done_reason": one_of(("stop", "length", "load", "unload")),
        **{f"{name}_duration": whole(1) for name in durations},
        "prompt_eval_count": COUNT,
        "eval_count": COUNT,
        "context": listed(WHOLE),
    }


def _listed() -> Shapes:
    tag = {
        "name": TEXT,
        "model": TEXT,
        "size": COUNT,
        "digest": TEXT,
        "details": refer("OllamaDetails"),
    }
    running = tag | {"expires_at": TIME, "size_vram": COUNT, "context_length": COUNT}
    listed_one = tag | {"modified_at": TIME, "capabilities": TEXTS}
    return {
        "OllamaDetails": answer(
            {
                "parent_model": TEXT,
                "format": always("safetensors"),
                "family": TEXT,
                "families": TEXTS,
                "parameter_size": TEXT,
                "quantization_level": TEXT,
                "context_length": COUNT,
                "embedding_length": COUNT,
            }
        ),
        "OllamaTags": answer({"models": listed(answer(listed_one, {"unavailable": TEXT}))}),
        "OllamaProcesses": answer({"models": listed(answer(running))}),
        "OllamaVersion": answer({"version": TEXT, "mlxd": TEXT}),
        "OllamaShown": _shown(),
    }


def _shown() -> Schema:
    tensor = answer({"name": TEXT, "type": TEXT, "shape": listed(COUNT)})
    texts = ("license", "modelfile", "parameters", "template")
    return answer(
        {
            **dict.fromkeys(texts, TEXT),
            "details": refer("OllamaDetails"),
            "model_info": OBJECT,
            "capabilities": TEXTS,
            "modified_at": TIME,
            **found_as(),
        },
        {"system": TEXT, "messages": listed(refer("OllamaMessage")), "tensors": listed(tensor)},
    )


def found_as() -> dict[str, Schema]:
    """What else a model answers to, and where it was found; mlxd's own keys."""
    return {"short_name": or_null(TEXT), "aliases": TEXTS, "source": TEXT}
