"""/v1/embeddings: vectors of texts, one long, never streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlxd.core.errors import InvalidRequest, MlxdError
from mlxd.core.events import Completion
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call, Encoder, NeverLoads
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.keep_alive import keep_alive
from mlxd.dialects.openai.errors import complain, render_error
from mlxd.dialects.openai.parameters import token_id
from mlxd.dialects.standing import priority_or_tier, user
from mlxd.dialects.vectors import floats, in_base64, unit

MOST_INPUTS = 2048
_FORMS = "string, array of strings, array of token ids or array of arrays of token ids"
ENCODINGS = ("float", "base64")


class EmbeddingsCodec(NeverLoads):
    """OpenAI's embeddings."""

    path = "/v1/embeddings"
    content_type = "application/json"
    heartbeat = b""

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields = Fields(body, complain)
        model = fields.text("model")
        if not model:
            raise InvalidRequest("you must provide a model parameter", param="model")
        kept, wanted = keep_alive(fields), priority_or_tier(fields)
        requests = [
            GenerationRequest(
                model=model,
                want="embedding",
                text=one if isinstance(one, str) else None,
                token_ids=None if isinstance(one, str) else tuple(one),
                keep_alive=kept,
                priority=wanted,
                user=user(fields, "safety_identifier", "user"),
                stream=False,
            )
            for one in _inputs(fields)
        ]
        return Call(
            id=id,
            received=now,
            action="generate",
            request=requests[0],
            more=tuple(requests[1:]),
            dimensions=fields.integer("dimensions", low=1),
            base64=_encoding(fields) == "base64",
        )

    def encoder(self, call: Call) -> Encoder:
        raise NotImplementedError("vectors are not streamed")

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        """Raises InvalidRequest where more dimensions are wanted than the model's vectors have."""
        vectors = [one.embedding.vector for one in completions if one.embedding]
        tokens = sum(one.finished.prompt_tokens for one in completions if one.finished)
        if vectors and call.dimensions is not None:
            _check_dimensions(call.dimensions, len(floats(vectors[0])))
        return {
            "object": "list",
            "data": list(_data(call, vectors)),
            "model": call.request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def render_error(self, error: MlxdError) -> Json:
        return render_error(error)


def _data(call: Call, vectors: Sequence[bytes]) -> Iterator[Json]:
    for index, vector in enumerate(vectors):
        values = unit(vector, call.dimensions)
        yield {
            "object": "embedding",
            "index": index,
            "embedding": in_base64(values) if call.base64 else values.tolist(),
        }


def _check_dimensions(wanted: int, there: int) -> None:
    if wanted > there:
        raise InvalidRequest(
            f"dimensions must be at most {there} for this model", param="dimensions"
        )


def _encoding(fields: Fields) -> str:
    encoding = fields.text("encoding_format") or "float"
    if encoding not in ENCODINGS:
        raise InvalidRequest(
            f"encoding_format must be one of {', '.join(ENCODINGS)}", param="encoding_format"
        )
    return encoding


def _inputs(fields: Fields) -> list[str | list[int]]:
    value = fields.get("input")
    if value is None or value in ("", []):
        raise InvalidRequest("input must not be empty", param="input")
    one = isinstance(value, str) or (isinstance(value, list) and token_id(value[0]))
    inputs = [value] if one else value
    if not isinstance(inputs, list) or not all(_is_input(one) for one in inputs):
        raise fields.wrong("input", _FORMS)
    if len(inputs) > MOST_INPUTS:
        raise InvalidRequest(f"input takes at most {MOST_INPUTS} inputs", param="input")
    for index, one in enumerate(inputs):
        if not one:
            raise InvalidRequest(f"input[{index}] must not be empty", param=f"input[{index}]")
    return inputs


def _is_input(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(map(token_id, value)))
