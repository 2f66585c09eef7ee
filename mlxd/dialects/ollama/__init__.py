"""Ollama's API: /api/generate and /api/chat, NDJSON streams; /api/embed and /api/embeddings."""

from mlxd.dialects.ollama.codec import ChatCodec, GenerateCodec
from mlxd.dialects.ollama.embed import EmbedCodec, EmbeddingsCodec
from mlxd.dialects.ollama.request import surely_asks

__all__ = [
    "SPOKEN_VERSION", "ChatCodec", "EmbedCodec", "EmbeddingsCodec", "GenerateCodec", "surely_asks",
]  # fmt: skip

SPOKEN_VERSION = "0.35.0"
"""Of the Ollama whose API this is. Clients refuse one below a version of theirs, the highest that
is known of those that want nothing but the API (Codex: 0.13.4)."""
