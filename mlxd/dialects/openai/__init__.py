"""OpenAI's API: /v1/chat/completions, /v1/completions and /v1/responses, server-sent events."""

from mlxd.dialects.openai.chat import ChatCodec
from mlxd.dialects.openai.completion import CompletionCodec
from mlxd.dialects.openai.responses import InputTokensCodec, ResponsesCodec

__all__ = ["ChatCodec", "CompletionCodec", "InputTokensCodec", "ResponsesCodec"]
