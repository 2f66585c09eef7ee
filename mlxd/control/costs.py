"""What a request is expected to take, in tokens, before anybody has counted any."""

from __future__ import annotations

from mlxd.control.order import Order
from mlxd.core.request import GenerationRequest

_CHARACTERS = 4
"""Of most languages, for a token."""


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


def _prompt_tokens(request: GenerationRequest) -> float:
    turns = request.messages or ()
    characters = sum(len(turn.content) + len(turn.thinking) for turn in turns)
    characters += len(request.text or "") + len(request.suffix or "")
    if request.tools:
        characters += len(str(request.tools))
    return characters / _CHARACTERS + len(request.token_ids or ()) + len(request.context)
