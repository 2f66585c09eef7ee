"""Ollama's API: /api/generate and /api/chat, NDJSON streams."""

from mlxd.dialects.ollama.codec import ChatCodec, GenerateCodec

__all__ = ["ChatCodec", "GenerateCodec"]
