"""OpenAI's API: chat and text completions, responses, embeddings; server-sent events."""

from mlxd.dialects.openai.chat import ChatCodec
from mlxd.dialects.openai.completion import CompletionCodec
from mlxd.dialects.openai.embeddings import EmbeddingsCodec
from mlxd.dialects.openai.responses import InputTokensCodec, ResponsesCodec

__all__ = [
    "ChatCodec",
    "CompletionCodec",
    "EmbeddingsCodec",
    "InputTokensCodec",
    "ResponsesCodec",
]
