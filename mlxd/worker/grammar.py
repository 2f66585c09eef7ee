"""Output held to JSON or a JSON schema by llguidance: compiled here, applied while sampling."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxd.core.request import Json
from mlxd.worker.job import Grammar
from mlxd.worker.refusal import Refusal


class Grammars:
    """Compiles for one model. llguidance is imported, and shown the vocabulary, at first use."""

    def __init__(self, tokenizer: TokenizerWrapper, width: int) -> None:
        self._tokenizer = tokenizer
        self._width = width
        self._vocabulary: Any = None

    def compile(
        self, format: str | Json, prompt_tokens: int, *, reasoning: bool, may_think: bool
    ) -> Grammar:
        """`may_think`: it may open a think block first. Raises Refusal, as the validator put it."""
        from llguidance import LLMatcher

        schema = {"type": "object"} if isinstance(format, str) else format
        try:
            source = LLMatcher.grammar_from_json_schema(json.dumps(schema))
        except ValueError as error:
            raise Refusal(f"format: {error}", param="format") from error
        vocabulary = self._known_vocabulary()
        wrong = LLMatcher.validate_grammar(source, vocabulary)
        if wrong:
            raise Refusal(f"format: {wrong}", param="format")
        matcher = LLMatcher(vocabulary, source)

        def make() -> _Constraint:
            thinking = _Thinking(self._tokenizer, reasoning, may_think)
            return _Constraint(matcher.deep_copy(), self._width, prompt_tokens, thinking)

        return make

    def _known_vocabulary(self) -> Any:
        if self._vocabulary is None:
            from llguidance.hf import from_tokenizer

            try:
                self._vocabulary = from_tokenizer(
                    self._tokenizer._tokenizer,
                    n_vocab=self._width,
                    eos_token=list(self._tokenizer.eos_token_ids),
                )
            except ValueError as error:
                words = "format is not offered by this model: its tokenizer cannot be read that way"
                raise Refusal(words, code="unsupported", param="format") from error
        return self._vocabulary


class GrammarFailed(Exception):
    """The text left its grammar, which masking should have made impossible."""


class _Thinking:
    """Follows whether the sequence is inside a think block, where no grammar holds."""

    def __init__(self, tokenizer: TokenizerWrapper, inside: bool, may_start: bool) -> None:
        self._end = list(tokenizer.think_end_tokens or ())
        starts = list(tokenizer.think_start_tokens or [])
        self.start: int | None = starts[0] if may_start and len(starts) == 1 else None
        self.inside = inside
        self._seen: list[int] = []

    def take(self, token: int) -> None:
        self._seen = [*self._seen, token][-len(self._end) :]
        if self._seen == self._end:
            self.inside = False


class _Constraint:
    """A logits processor. It reads the tokens it is shown, which costs the batch its look-ahead."""

    def __init__(self, matcher: Any, width: int, prompt_tokens: int, thinking: _Thinking) -> None:
        self._matcher = matcher
        self._read = prompt_tokens
        self._begun = False
        self._thinking = thinking
        self._mask = np.zeros((1, (width + 31) // 32), dtype=np.int32)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        unread: list[int] = tokens[self._read :].tolist()  # type: ignore[assignment]
        for token in unread:
            self._take(token)
        self._read = len(tokens)
        if self._thinking.inside:
            return logits
        return self._masked(logits)

    def _take(self, token: int) -> None:
        if self._thinking.inside:
            self._thinking.take(token)
        elif not self._begun and token == self._thinking.start:
            self._thinking.inside = True
        else:
            self._begun = True
            if not self._matcher.consume_token(token):
                raise GrammarFailed(self._matcher.get_error() or "a token outside the grammar")

    def _masked(self, logits: mx.array) -> mx.array:
        """A model that may think first is allowed to open its think block, once."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._mask, 0)
        words = mx.expand_dims(mx.array(self._mask.view(np.uint32)), -1)
        bits = (words >> mx.arange(32, dtype=mx.uint32)) & 1
        allowed = bits.reshape(1, -1)[:, : logits.shape[-1]].astype(mx.bool_)
        if not self._begun and self._thinking.start is not None:
            allowed[:, self._thinking.start] = True
        return mx.where(allowed, logits, -mx.inf)
