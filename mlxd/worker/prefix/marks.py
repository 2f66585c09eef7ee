"""The tokens that begin turns, family by family, and whose turn it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from mlx_lm.tokenizer_utils import TokenizerWrapper

_NAMES = (
    "<|im_start|>",  # ChatML: Qwen, Yi, Phi, SmolLM, LFM2
    "<|start_header_id|>",  # Llama 3
    "<|header_start|>",  # Llama 4
    "<start_of_turn>",  # Gemma
    "<|turn>",  # Gemma 4
    "<|start|>",  # gpt-oss
    "<|start_of_role|>",  # Granite
    "<|START_OF_TURN_TOKEN|>",  # Command
    *("[SYSTEM_PROMPT]", "[INST]", "[TOOL_RESULTS]"),  # Mistral
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|tool|>"),  # GLM, Phi
    *("<｜User｜>", "<｜Assistant｜>"),  # DeepSeek
    *("<|im_system|>", "<|im_user|>", "<|im_assistant|>"),  # Kimi
    *("[|system|]", "[|user|]", "[|assistant|]", "[|tool|]"),  # EXAONE
)
_ROLES = {
    **dict.fromkeys(("system", "developer", "system_prompt"), "system"),
    **dict.fromkeys(("user", "inst", "human"), "user"),
    **dict.fromkeys(("assistant", "model", "chatbot"), "assistant"),
    **dict.fromkeys(("tool", "ipython", "observation", "tool_results", "function"), "tool"),
}
"""By the word that stands for it in a mark or right behind one."""
_HEADS = (1, 3, 12)
"""Tokens behind a mark that are read for a word, until one is known."""
_MOST_HEADS = 1000
_WORD = re.compile(r"[A-Za-z_]+")


class Marks:
    """Of one tokenizer. Used by one thread."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._roles: dict[tuple[int, ...], str] = {}

    @cached_property
    def names(self) -> dict[int, str]:
        """By their tokens; looked up with the first prompt."""
        found = ((self._token(name), name) for name in _NAMES)
        unknown = self._tokenizer.unk_token_id
        return {token: name for token, name in found if token is not None and token != unknown}

    def _token(self, name: str) -> int | None:
        """Tokenizers that models bring with them say in several ways that they have none."""
        try:
            token: int | None = self._tokenizer.convert_tokens_to_ids(name)
        except (KeyError, ValueError):
            return None
        return token

    @cached_property
    def _named(self) -> dict[int, str]:
        """Whose turn a mark begins, where it says that itself."""
        return {token: _role_in(name) for token, name in self.names.items()}

    def role(self, tokens: Sequence[int], at: int) -> str:
        """Of the turn whose mark is there: system, user, assistant, tool; empty: unknown."""
        role = self._named[tokens[at]]
        for size in _HEADS:
            role = role or self._head(tuple(tokens[at + 1 : at + 1 + size]))
        return role

    def _head(self, tokens: tuple[int, ...]) -> str:
        if tokens not in self._roles:
            if len(self._roles) >= _MOST_HEADS:
                self._roles.clear()
            self._roles[tokens] = _role_in(self._tokenizer.decode(list(tokens)))
        return self._roles[tokens]


def _role_in(text: str) -> str:
    """By its first word that is none of the marks' own."""
    word = _WORD.search(text.lower().replace("im_", ""))
    return _ROLES.get(word[0], "") if word else ""
