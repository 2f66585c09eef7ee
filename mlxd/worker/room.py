"""How long a prompt may be: counted in tokens, and judged by its bytes before they are counted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, models

from mlxd.worker.detokenize import BYTE_ALPHABET, byte_level_bytes
from mlxd.worker.refusal import Refusal

USUAL_BYTES = 8
"""Of a text, for a token: seldom more."""
_NFC_SHRINKS = 4
"""Canonical composition shortens no text more: at worst U+1FBE U+0308 U+0301, 7 bytes, to 2."""
_KEEPING = {"ByteLevel", "Split", "Digits", "Punctuation", "Metaspace"}
"""Ways to cut a text before its tokens are looked up; none of them drops any of it."""


@dataclass(frozen=True, slots=True)
class Room:
    """What limits one prompt. At least one token of the context is left to the answer."""

    context: int
    """Of prompt and answer together."""
    max_prompt: int
    context_key: str = ""
    """The policy that allows no more than `context`; empty: the model does not."""

    @property
    def most(self) -> int:
        """The longest prompt's tokens."""
        return min(self.context - 1, self.max_prompt)

    def check(self, tokens: int) -> None:
        """Raises Refusal, with the count."""
        self._refuse_over(tokens, f"input length ({tokens} tokens)")

    def check_bytes(self, size: int, longest: int) -> None:
        """Raises Refusal when no tokens of at most `longest` bytes are few enough."""
        self._refuse_over(-(-size // longest), "input length", counted=False)

    def _refuse_over(self, tokens: int, said: str, *, counted: bool = True) -> None:
        if tokens > self.context - 1:
            whose = self._whose("the model's maximum context length")
            raise Refusal(
                f"{said} exceeds {whose} ({self.context} tokens)",
                code="context_exceeded",
                policy_key=self.context_key or None,
                numbers=self._numbers(tokens, counted=counted),
            )
        self._refuse_over_policy(tokens, said, counted=counted)

    def _whose(self, model: str) -> str:
        """`model`: the words that clients look for, where the context is the model's, though
        policy has set that.
        """
        return model if self.context_key.startswith("models.") else self.context_key or model

    def _refuse_over_policy(self, tokens: int, said: str, *, counted: bool) -> None:
        if tokens > self.max_prompt:
            raise Refusal(
                f"{said} exceeds limits.tokens.max_prompt ({self.max_prompt} tokens)",
                code="context_exceeded",
                policy_key="limits.tokens.max_prompt",
                numbers=self._numbers(tokens, counted=counted),
            )

    def _numbers(self, tokens: int, *, counted: bool) -> dict[str, int]:
        asked = "prompt_tokens" if counted else "prompt_tokens_at_least"
        return {asked: tokens, "allowed_tokens": self.most}


@dataclass(frozen=True, slots=True)
class CountingRoom(Room):
    """What limits a prompt that is only counted: by what tokens usually stand for, not by what they
    may; counting alone takes seconds for each megabyte.
    """

    def check_bytes(self, size: int, longest: int) -> None:
        tokens = -(-size // min(longest, USUAL_BYTES))
        self._refuse_over(tokens, "input length", counted=False)


@dataclass(frozen=True, slots=True)
class InputRoom(Room):
    """What limits an input that is not answered: it may fill the whole context."""

    @property
    def most(self) -> int:
        return min(self.context, self.max_prompt)

    def _refuse_over(self, tokens: int, said: str, *, counted: bool = True) -> None:
        if tokens > self.context:
            whose = self._whose("the context length")
            raise Refusal(
                f"the input length exceeds {whose} ({self.context} tokens)",
                code="context_exceeded",
                param="input",
                policy_key=self.context_key or None,
                numbers=self._numbers(tokens, counted=counted),
            )
        self._refuse_over_policy(tokens, said, counted=counted)


def longest_token(tokenizer: TokenizerWrapper) -> int | None:
    """The most bytes of a text that one token can stand for; None where nothing is certain.

    Certain are tokenizers that give every byte of the text to some token: no white space is
    swallowed, nothing is replaced by less, and no run of unknown characters becomes one token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or not isinstance(backend.model, models.BPE):
        return None
    shrinks = _shrinks(_state(backend.normalizer))
    cuts = _flat(_state(backend.pre_tokenizer), "pretokenizers")
    added = tokenizer.added_tokens_decoder.values()
    swallowing = any(token.lstrip or token.rstrip for token in added)
    if shrinks is None or swallowing or not all(_keeps(cut) for cut in cuts):
        return None
    bytewise = any(cut["type"] == "ByteLevel" for cut in cuts)
    longest = _longest_piece(backend, bytewise=bytewise)
    if longest is None:
        return None
    return shrinks * max([longest, *(len(token.content.encode()) for token in added)])


def _longest_piece(backend: Tokenizer, *, bytewise: bool) -> int | None:
    """None where not every byte is in the vocabulary."""
    vocabulary = backend.get_vocab(with_added_tokens=False).keys()
    if bytewise:
        whole = vocabulary >= BYTE_ALPHABET.keys()
        sizes = (len(byte_level_bytes(piece)) for piece in vocabulary)
    else:
        whole = backend.model.byte_fallback and vocabulary >= _FALLBACKS
        sizes = (len(piece.encode()) for piece in vocabulary)
    return max(sizes) if whole else None


_FALLBACKS = {f"<0x{byte:02X}>" for byte in range(256)}


def _state(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = {} if part is None else json.loads(part.__getstate__())
    return state


def _flat(state: dict[str, Any], key: str) -> list[dict[str, Any]]:
    if not state:
        return []
    if state["type"] == "Sequence":
        return [flat for part in state[key] for flat in _flat(part, key)]
    return [state]


def _keeps(cut: dict[str, Any]) -> bool:
    return cut["type"] in _KEEPING and cut.get("behavior") != "Removed"


def _shrinks(normalizer: dict[str, Any]) -> int | None:
    """By what factor it can shorten a text at most."""
    factor = 1
    for part in _flat(normalizer, "normalizers"):
        if part["type"] == "NFC":
            factor = _NFC_SHRINKS
        elif part["type"] == "Replace":
            replaced = part["pattern"].get("String")
            if replaced is None or len(part["content"].encode()) < len(replaced.encode()):
                return None
        elif part["type"] != "Prepend":
            return None
    return factor
