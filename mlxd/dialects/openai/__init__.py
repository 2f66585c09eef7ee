"""OpenAI's API: /v1/chat/completions and /v1/completions, server-sent events."""

from mlxd.dialects.openai.chat import ChatCodec
from mlxd.dialects.openai.completion import CompletionCodec

__all__ = ["ChatCodec", "CompletionCodec"]
