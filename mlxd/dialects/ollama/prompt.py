"""What /api/generate takes as its prompt: one turn, a raw text, or a text with a gap."""

from __future__ import annotations

import re
from dataclasses import replace

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import GenerationRequest, Message
from mlxd.dialects.fields import Fields

LONGEST_TEMPLATE = 2**18
"""Characters."""
_GO = re.compile(
    r"\{\{-?\s*(?:[.$]|(?:if|else|end|with|block|define)\b|template\s+\""
    r"|(?:range|and|or|not|eq|ne|len|json)\s+[.$])"
)
"""Beginnings of Go's template actions, none of which is an expression of Jinja."""
LAST_ID = 2**31


def with_prompt(fields: Fields, request: GenerationRequest, prompt: str) -> GenerationRequest:
    """Raises InvalidRequest."""
    system, template = fields.text("system") or "", fields.text("template") or ""
    suffix, context = fields.text("suffix") or "", _context(fields)
    if fields.flag("raw"):
        if system or template or context:
            raise InvalidRequest("raw mode does not support template, system, or context")
        _refuse_beside("raw", suffix=suffix)
        return replace(request, text=prompt)
    request = replace(request, tell_context=True)
    if suffix:
        _refuse_beside("suffix", template=template, context=context)
        return replace(request, text=prompt, suffix=suffix)
    check_template(template)
    turns = [Message("system", system)] if system else []
    return replace(
        request,
        messages=(*turns, Message("user", prompt)),
        template=template,
        context=context,
    )


def check_template(template: str) -> None:
    """Raises UnsupportedFeature for a template as Ollama writes them, InvalidRequest for one that
    is too long. Whether it is good Jinja is seen when it is used.
    """
    if _GO.search(template):
        raise UnsupportedFeature(
            "template: this is written in Go's template language, which is not offered; send a "
            "chat template in Jinja, as models have it in chat_template.jinja, or none",
            param="template",
        )
    if len(template) > LONGEST_TEMPLATE:
        raise InvalidRequest(
            f"template has at most {LONGEST_TEMPLATE} characters", param="template"
        )


def _refuse_beside(name: str, **others: object) -> None:
    for other, value in others.items():
        if value:
            raise InvalidRequest(f"{name} does not go together with {other}", param=other)


def _context(fields: Fields) -> tuple[int, ...]:
    values = fields.array("context", "array of integers") or []
    if not all(type(value) is int for value in values):
        raise fields.wrong("context", "array of integers")
    if any(not 0 <= value < LAST_ID for value in values):
        raise InvalidRequest("context holds what is no token id", param="context")
    return tuple(values)
