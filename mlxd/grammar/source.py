"""A request's grammar in llguidance's words. Nothing here knows a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlxd.core.request import GenerationRequest, Json
from mlxd.grammar.markers import Markers
from mlxd.grammar.options import JSON, OPTIONS
from mlxd.grammar.schema import narrowed
from mlxd.grammar.tools import BadTools, calls_grammars

LONGEST_WORDS = 500


class BadGrammar(Exception):
    """`param` is the request's field that is wrong; the words are the validator's."""

    quotes = True
    """The schema."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class Source:
    """A grammar, and the field of the request that it comes from."""

    text: str
    param: str


def is_held(request: GenerationRequest) -> bool:
    """Whether a grammar holds the answer."""
    return request.format is not None or bool(request.pattern) or calls_are_forced(request)


def calls_are_forced(request: GenerationRequest) -> bool:
    return request.tool_choice.required


def calls_are_free(request: GenerationRequest) -> bool:
    """Whether an answer that a grammar holds may be a tool call in place of what that says."""
    return bool(request.tools) and is_held(request) and not calls_are_forced(request)


def sources_of(request: GenerationRequest, markers: Markers | None = None) -> Iterator[Source]:
    """The grammars that say what is asked, the best first; the first that compiles counts.

    Raises BadGrammar.
    """
    if calls_are_forced(request):
        try:
            for text in calls_grammars(request.tools, request.tool_choice, markers):
                yield Source(text, "tools")
        except BadTools as error:
            raise BadGrammar(str(error), "tools") from error
    elif request.format is not None:
        for schema in _schemas(request.format):
            yield Source(_of_schema(schema), "format")
    elif request.pattern:
        yield Source(_of_pattern(request.pattern), "pattern")


def _schemas(format: str | Json) -> Iterator[Json]:
    """What is narrower than the client's may be impossible where that is not."""
    if isinstance(format, str):
        yield {"type": "object"}
        return
    narrow = narrowed(format)
    yield narrow
    if narrow != format:
        yield format


def _of_schema(schema: Json) -> str:
    return f"{OPTIONS}start: %json {json.dumps({**schema, 'x-guidance': JSON})}"


def _of_pattern(pattern: str) -> str:
    """It is the whole answer that matches; anchors change nothing."""
    from llguidance import regex_to_lark

    return f"{OPTIONS}start: /{regex_to_lark(pattern, use_ascii='')}/"


def told(words: str) -> str:
    """In one line, without the lines that point at a place in the grammar."""
    lines = (line.strip() for line in words.splitlines())
    line = " ".join(line for line in lines if line.strip("^") and not _SHOWS.match(line))
    line = _PLACE.sub("", line).replace("<non-verbose/>", "").strip()
    if line.startswith("NoExtension"):
        return "nothing can ever match it"
    if len(line) > LONGEST_WORDS:
        line = f"{line[: LONGEST_WORDS // 2]} ... {line[-LONGEST_WORDS // 2 :]}"
    return line or "it cannot be compiled"


_SHOWS = re.compile(r"\d+ \| ")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
