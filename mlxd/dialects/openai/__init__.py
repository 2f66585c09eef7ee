"""OpenAI's API: /v1/chat/completions and /v1/completions, server-sent events; /v1/embeddings."""

from mlxd.dialects.openai.chat import ChatCodec
from mlxd.dialects.openai.completion import CompletionCodec
from mlxd.dialects.openai.embeddings import EmbeddingsCodec

__all__ = ["ChatCodec", "CompletionCodec", "EmbeddingsCodec"]
