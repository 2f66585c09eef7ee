"""OpenAI's /v1/responses: items in, items out, and streams of events about them."""

from mlxd.dialects.openai.responses.codec import InputTokensCodec, ResponsesCodec
from mlxd.dialects.openai.responses.items import response_of
from mlxd.dialects.openai.responses.request import Earlier, references
from mlxd.dialects.openai.responses.stream import ResponsesEncoder

__all__ = [
    "Earlier",
    "InputTokensCodec",
    "ResponsesCodec",
    "ResponsesEncoder",
    "references",
    "response_of",
]
