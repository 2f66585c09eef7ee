"""Answers as gpt-oss writes them: messages, each with a header that says what it is.

    <|channel|>analysis<|message|>thinking<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{}<|call|>
    <|start|>assistant<|channel|>final<|message|>the answer<|return|>

The prompt ends with `<|start|>assistant`. mlx-lm takes all of it for text.
"""

from __future__ import annotations

import re
from typing import Literal

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxd.core.request import CalledTool, Json
from mlxd.worker.parts import Part, call_of, overlap

THINK_START = "<|channel|>analysis<|message|>"
THINK_END = "<|end|>"
CALL_ENDS = ("<|call|>", "<|return|>")
"""Tokens that end an answer, whether or not its model's files say so."""
_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>assistant"
_ENDS = (THINK_END, *CALL_ENDS)
_OPENINGS = (_CHANNEL, " to=functions.", _START)
"""What an answer begins with that has headers."""
_BREAKS = tuple(
    f"{end}{_START}{begun}" for end in (*_ENDS, "") for begun in (_CHANNEL, " to=")
)  # fmt: skip
"""Between two messages. A mark alone may be what the text is about."""
_LONGEST_HEADER = 500
"""Characters: a longer one is none."""
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")


MARKS = (_CHANNEL, _MESSAGE, *CALL_ENDS)
"""Tokens of every model that writes like that."""


def is_harmony(tokenizer: TokenizerWrapper) -> bool:
    """Whether a tokenizer is known to be such a model's."""
    return bool(tokenizer.think_start == THINK_START)


class Harmony:
    """Takes one answer apart as it grows. What may be the start of a mark waits."""

    def __init__(self, tools: tuple[Json, ...], *, reasoning: bool) -> None:
        """`reasoning`: the prompt left it thinking. Without `tools` a call is text."""
        self._tools = bool(tools)
        self._at: Literal["start", "header", "text", "reasoning", "call"] = (
            "reasoning" if reasoning else "start"
        )
        self._waiting = ""
        self._call = ""
        """The call that is being written, behind its header."""
        self._header = ""
        self.malformed = 0

    @property
    def holding(self) -> bool:
        return bool(self._waiting or self._call)

    @property
    def thinking(self) -> bool:
        return self._at == "reasoning"

    def feed(self, text: str) -> list[Part]:
        self._waiting += text
        parts: list[Part] = []
        if self._at == "start" and not self._has_begun():
            return parts
        while self._waiting:
            before = (self._at, self._waiting)
            if self._at == "header":
                self._read_header()
            else:
                self._read_body(parts)
            if (self._at, self._waiting) == before:
                break
        return parts

    def finish(self, *, truncated: bool) -> list[Part]:
        """The rest. A call cut by a length limit is text."""
        parts: list[Part] = []
        rest, self._waiting = self._waiting, ""
        if self._at != "header" and not rest.startswith((*_ENDS, *_OPENINGS)):
            self._say(rest, parts)
        self._close(parts, truncated=truncated)
        return parts

    def _has_begun(self) -> bool:
        """Whether it is known if a header comes first; none does where an answer goes on."""
        if any(opening.startswith(self._waiting) for opening in _OPENINGS):
            return False
        self._at = "header" if self._waiting.startswith(_OPENINGS) else "text"
        return True

    def _read_header(self) -> None:
        header, mark, rest = self._waiting.partition(_MESSAGE)
        if not mark:
            if len(header) > _LONGEST_HEADER:
                self._at = "text"
            return
        self._header, self._waiting = header + mark, rest
        if _RECIPIENT.search(header) and self._tools:
            self._at = "call"
        elif f"{_CHANNEL}analysis" in header:
            self._at = "reasoning"
        else:
            self._at = "text"

    def _read_body(self, parts: list[Part]) -> None:
        if "<" not in self._waiting:  # most pieces: all marks begin with one
            said, self._waiting = self._waiting, ""
            self._say(said, parts)
            return
        found = [(at, mark) for mark in _BREAKS if (at := self._waiting.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._say(self._waiting[:at], parts)
            self._close(parts, truncated=False)
            self._at = "header"
            self._waiting = self._waiting[at + len(mark) :]
            self._waiting = mark[mark.index(_START) + len(_START) :] + self._waiting
            return
        cut = len(self._waiting) - max(overlap(self._waiting, mark) for mark in _BREAKS)
        body, self._waiting = self._waiting[:cut], self._waiting[cut:]
        self._say(body, parts)

    def _say(self, text: str, parts: list[Part]) -> None:
        if self._at == "call":
            self._call += text
        elif text:
            parts.append(("reasoning" if self._at == "reasoning" else "text", text))

    def _close(self, parts: list[Part], *, truncated: bool) -> None:
        """The end of a message."""
        if self._at != "call":
            return
        call = None if truncated else self._called()
        if call is None:
            self.malformed += int(not truncated)
            parts.append(("text", self._header + self._call))
        else:
            parts.append(call)
        self._at, self._call = "header", ""

    def _called(self) -> CalledTool | None:
        name = _RECIPIENT.search(self._header)
        assert name is not None
        return call_of({"name": name[1], "arguments": self._call.strip() or "{}"})
