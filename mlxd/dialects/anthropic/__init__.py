"""Anthropic's API: /v1/messages and its count of tokens, server-sent events."""

from mlxd.dialects.anthropic.codec import CountCodec, MessagesCodec

__all__ = ["CountCodec", "MessagesCodec"]
