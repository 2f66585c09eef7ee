"""What a request takes, in tokens: as expected before anybody has counted any, and in the end."""

from __future__ import annotations

from mlxd.control.order import Order
from mlxd.core.request import GenerationRequest

_CHARACTERS = 4
"""Of most languages, for a token."""
_CACHED = 1 / 16
"""Of a token's cost, where it is not computed again: what it takes to have it in memory and to
attend to it."""


def cost_of(order: Order) -> float:
    """Of its prompt and its answer together."""
    request = order.request
    prompt = prompt_of(order)
    if request.want != "answer":
        return prompt
    said = order.expected_output if request.max_tokens is None else request.max_tokens
    return prompt + max(0, min(said, order.max_output, order.context - prompt))


def prompt_of(order: Order) -> float:
    """Of its prompt alone."""
    return min(_prompt_tokens(order.request), order.context)


def took(tokens: int, cached: int) -> float:
    """What one has taken in all, `cached` of its tokens from earlier ones: each of those is a small
    part of one.
    """
    return tokens - (1 - _CACHED) * cached


def _prompt_tokens(request: GenerationRequest) -> float:
    turns = request.messages or ()
    characters = sum(len(turn.content) + len(turn.thinking) for turn in turns)
    characters += len(request.text or "") + len(request.suffix or "")
    if request.tools:
        characters += len(str(request.tools))
    return characters / _CHARACTERS + len(request.token_ids or ()) + len(request.context)
