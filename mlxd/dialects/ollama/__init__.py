"""Ollama's API: /api/generate and /api/chat, NDJSON streams; /api/embed and /api/embeddings."""

from mlxd.dialects.ollama.codec import ChatCodec, GenerateCodec
from mlxd.dialects.ollama.embed import EmbedCodec, EmbeddingsCodec
from mlxd.dialects.ollama.request import surely_asks

__all__ = ["ChatCodec", "EmbedCodec", "EmbeddingsCodec", "GenerateCodec", "surely_asks"]
