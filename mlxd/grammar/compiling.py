"""A request's grammar, compiled for a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mlxd.grammar.source import BadGrammar, Source, told


def matcher_of(text: str, tokenizer: Any) -> Any:
    """At the beginning of an answer, or with an error."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    return LLMatcher(tokenizer, text, log_level=0, limits=limits)


def compiled(sources: Iterator[Source], compile: Callable[[str], Any]) -> Any:
    """The first of the sources that compiles, as a matcher. Raises BadGrammar, in the words that
    the compiler has for the last.
    """
    words, param = "", ""
    for source in sources:
        matcher = compile(source.text)
        words, param = matcher.get_error(), source.param
        if not words:
            return matcher
    raise BadGrammar(told(words), param)
