"""Answers held to a grammar by llguidance: compiled here, followed token by token."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer

from mlxd.core.request import GenerationRequest
from mlxd.grammar.compiling import compiled, matcher_of
from mlxd.grammar.markers import Markers
from mlxd.grammar.source import BadGrammar, calls_are_free, sources_of
from mlxd.worker.constraint import Closing, Constrained, Opening, Thinking
from mlxd.worker.formats import writes_marks
from mlxd.worker.job import Grammar
from mlxd.worker.refusal import Refusal
from mlxd.worker.sampling import Guard

DEAF_SECONDS = 15.0
"""For some hundred thousand tokens, on a slow and busy machine, it takes up to so long to show them
to llguidance; which keeps Python's lock all the while."""
KEPT = 32
"""Compiled grammars that are kept: clients ask for the same few again and again."""
_LONGEST_REASON = 200


class Grammars:
    """Compiles for one model. llguidance is imported, and shown the vocabulary, at first use."""

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        width: int,
        markers: Markers | None = None,
        deaf: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`markers`: of tool calls, where the model writes them as JSON. `deaf` is told before
        Python's lock is held for up to so many seconds, and of 0 when it no longer is.
        """
        self._deaf = deaf
        self._tokenizer = tokenizer
        self._width = width
        self._markers = markers
        self._vocabulary: Any = None
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def prepare(self) -> None:
        """What the first grammar would take long to make."""
        with suppress(Refusal):  # it is refused to whoever asks for a grammar
            self._known_vocabulary()

    def compile(self, request: GenerationRequest, *, reasoning: bool, may_think: bool) -> Grammar:
        """`may_think`: it may open a think block first. Raises Refusal, as the validator put it."""
        try:
            matcher = self._compiled(request)
        except BadGrammar as error:
            raise Refusal(f"{error.param}: {error.message}", param=error.param) from error
        tokenizer = self._tokenizer
        eos = sorted(tokenizer.eos_token_ids)
        least = inf if request.ignore_eos else request.min_tokens
        starts = (tokenizer.think_start_tokens or ()) if may_think else ()
        read = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
        ends = tokenizer.think_end_tokens or ()
        call = (tokenizer.tool_call_start_tokens or ()) if calls_are_free(request) else ()

        def make(guard: Guard, answer: list[int]) -> Constrained:
            closing = Closing(ends, read if writes_marks(tokenizer) else None)
            thinking = Thinking(starts, closing, inside=reasoning)
            copy = matcher.deep_copy()
            constraint = Constrained(copy, guard, thinking, Opening(call), eos=eos, least=least)
            for token in answer:
                constraint.take(token)
            return constraint

        return make

    def _compiled(self, request: GenerationRequest) -> Any:
        """A matcher at the beginning of the answer. Raises BadGrammar, Refusal."""
        return compiled(sources_of(request, self._markers), self._matcher)

    def _matcher(self, text: str) -> Any:
        matcher = self._kept.get(text) or matcher_of(text, self._known_vocabulary())
        self._kept[text] = matcher
        self._kept.move_to_end(text)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return matcher

    def _known_vocabulary(self) -> Any:
        if self._vocabulary is None:
            self._deaf(DEAF_SECONDS)
            try:
                self._vocabulary = _vocabulary_of(self._tokenizer, self._width)
            except ValueError as error:
                words = f"no grammar holds this model's answers: {_reason(self._tokenizer, error)}"
                raise Refusal(words, code="unsupported", param="format") from error
            finally:
                self._deaf(0.0)
        return self._vocabulary


def _reason(tokenizer: TokenizerWrapper, error: ValueError) -> str:
    """Why llguidance does not take a tokenizer."""
    if not tokenizer.eos_token_ids:
        return "no token ends them"
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        return "its tokenizer is Python code"
    if "decoder type" in str(error):
        return "its tokenizer has a decoder that is neither ByteLevel nor ByteFallback"
    return f"its tokenizer cannot be read: {str(error)[:_LONGEST_REASON]}"


def _vocabulary_of(tokenizer: TokenizerWrapper, width: int) -> Any:
    """As llguidance knows it. Raises ValueError."""
    from llguidance import LLTokenizer
    from llguidance.hf import from_tokenizer

    ends = list(tokenizer.eos_token_ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if len(tokenizer) <= width or not isinstance(backend, Tokenizer):
        return from_tokenizer(tokenizer._tokenizer, n_vocab=width, eos_token=ends)
    said = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    said["added_tokens"] = [token for token in said["added_tokens"] if token["id"] < width]
    return LLTokenizer(json.dumps(said), n_vocab=width, eos_token=ends)
