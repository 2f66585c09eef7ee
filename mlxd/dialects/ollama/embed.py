"""/api/embed, and the older /api/embeddings: vectors of texts, never streamed."""

from __future__ import annotations

from collections.abc import Sequence

from mlxd.core.errors import InvalidRequest, MlxdError
from mlxd.core.events import Completion
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call, Encoder
from mlxd.dialects.fields import Fields, FoldedFields, Json
from mlxd.dialects.keep_alive import keep_alive
from mlxd.dialects.ollama.codec import nanoseconds
from mlxd.dialects.ollama.options import read_options
from mlxd.dialects.ollama.request import complain, idle_action
from mlxd.dialects.standing import priority, user
from mlxd.dialects.vectors import floats, unit

MOST_INPUTS = 2048


class _Codec:
    """What both endpoints share."""

    content_type = "application/json"
    heartbeat = b""

    def encoder(self, call: Call) -> Encoder:
        raise NotImplementedError("vectors are not streamed")

    def render_error(self, error: MlxdError) -> Json:
        return {"error": error.explained()}


class EmbedCodec(_Codec):
    """/api/embed: any number of texts; vectors one long."""

    path = "/api/embed"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields = FoldedFields(body, complain)
        dimensions = fields.integer("dimensions") or 0
        truncate = fields.flag("truncate") is not False
        return _call(
            fields,
            _inputs(fields),
            truncate=truncate,
            dimensions=dimensions if dimensions > 0 else None,
            id=id,
            now=now,
        )

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        vectors = [
            unit(one.embedding.vector, call.dimensions) for one in completions if one.embedding
        ]
        waited = [one.started.wait_seconds for one in completions if one.started]
        finished = [one.finished for one in completions if one.finished]
        return {
            "model": call.request.model,
            "embeddings": [vector.tolist() for vector in vectors],
            "total_duration": nanoseconds(now - call.received),
            "load_duration": nanoseconds(min(waited, default=0.0)),
            "prompt_eval_count": sum(one.prompt_tokens for one in finished),
        }

    def render_action(self, call: Call, now: float) -> Json:
        return {"model": call.request.model, "embeddings": []}


class EmbeddingsCodec(_Codec):
    """/api/embeddings: one text; its vector as the model makes it."""

    path = "/api/embeddings"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields = FoldedFields(body, complain)
        prompt = fields.text("prompt")
        inputs = (prompt,) if prompt else ()
        return _call(fields, inputs, truncate=True, dimensions=None, id=id, now=now)

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        (completion,) = completions
        vector = completion.embedding.vector if completion.embedding else b""
        return {"embedding": floats(vector).tolist()}

    def render_action(self, call: Call, now: float) -> Json:
        return {"embedding": []}


def _call(
    fields: Fields,
    inputs: Sequence[str],
    *,
    truncate: bool,
    dimensions: int | None,
    id: str,
    now: float,
) -> Call:
    """Without any input the model is loaded, or let go."""
    model = fields.text("model")
    if not model:
        raise InvalidRequest("model is required", param="model")
    read_options(fields.mapping("options") or {})
    kept, wanted = keep_alive(fields), priority(fields)
    requests = [
        GenerationRequest(
            model=model,
            want="embedding",
            text=text,
            truncate=truncate,
            keep_alive=kept,
            priority=wanted,
            user=user(fields, "user"),
            stream=False,
        )
        for text in inputs or ("",)
    ]
    return Call(
        id=id,
        received=now,
        action="generate" if inputs else idle_action(requests[0]),
        request=requests[0],
        more=tuple(requests[1:]),
        dimensions=dimensions,
    )


def _inputs(fields: Fields) -> Sequence[str]:
    value = fields.get("input")
    if value is None or value == "":
        return ()
    inputs = [value] if isinstance(value, str) else value
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise InvalidRequest("invalid input type", param="input")
    if len(inputs) > MOST_INPUTS:
        raise InvalidRequest(f"input takes at most {MOST_INPUTS} texts", param="input")
    return inputs
