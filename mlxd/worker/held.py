"""An answer that a grammar holds, taken apart: thinking, perhaps, and then text or calls.

The grammar knows what the answer is, so that no marker is looked for in it: a string in JSON may
say `<tool_call>`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Literal, Protocol

from mlxd.core.request import CalledTool
from mlxd.worker.parts import Part, call_of, overlap


class Reader(Protocol):
    """Reads what comes behind the thinking."""

    @property
    def holding(self) -> bool: ...

    @property
    def malformed(self) -> int: ...

    def feed(self, text: str) -> list[Part]: ...

    def finish(self, *, truncated: bool) -> list[Part]: ...


class Held:
    """Thinking first, where the prompt left it open or the answer opens it; then what is read."""

    def __init__(self, reader: Reader, *, inside: bool, opens: str, closes: str) -> None:
        """`opens`: what an answer that thinks begins with; empty: it may not think any more."""
        self._reader = reader
        self._opens = opens
        self._closes = closes
        self._at: Literal["start", "thinking", "answer"] = "thinking" if inside else "start"
        self._waiting = ""

    @property
    def malformed(self) -> int:
        return self._reader.malformed

    @property
    def thinking(self) -> bool:
        return self._at == "thinking"

    @property
    def holding(self) -> bool:
        return bool(self._waiting) or self._reader.holding

    def feed(self, text: str) -> list[Part]:
        self._waiting += text
        parts: list[Part] = []
        if self._at == "start":
            self._start()
        if self._at == "thinking":
            parts += self._thought()
        if self._at == "answer" and self._waiting:
            parts += self._reader.feed(self._taken())
        return parts

    def finish(self, *, truncated: bool) -> list[Part]:
        parts: list[Part] = []
        if self._waiting and self._at == "thinking":
            parts.append(("reasoning", self._taken()))
        elif self._waiting:
            parts += self._reader.feed(self._taken())
        return parts + self._reader.finish(truncated=truncated)

    def _start(self) -> None:
        if self._waiting.startswith(self._opens) and self._opens:
            self._at, self._waiting = "thinking", self._waiting[len(self._opens) :]
        elif not self._opens.startswith(self._waiting) or not self._opens:
            self._at = "answer"

    def _thought(self) -> list[Part]:
        """What is certainly thinking; what may be the start of its end waits."""
        thought, mark, rest = self._waiting.partition(self._closes)
        if mark:
            self._at, self._waiting = "answer", rest
        else:
            cut = len(thought) - overlap(thought, self._closes)
            thought, self._waiting = thought[:cut], thought[cut:]
        return [("reasoning", thought)] if thought else []

    def _taken(self) -> str:
        text, self._waiting = self._waiting, ""
        return text


class Words:
    """Text, and nothing but text."""

    holding = False
    malformed = 0

    def feed(self, text: str) -> list[Part]:
        return [("text", text)]

    def finish(self, *, truncated: bool) -> list[Part]:
        return []


class WordsOrCalls:
    """Text; or where it begins with `opens` what `calls` makes of it, which is told apart there."""

    def __init__(self, opens: str, calls: Reader) -> None:
        self._opens = opens
        self._calls = calls
        self._waiting = ""
        self._reader: Reader | None = None

    @property
    def holding(self) -> bool:
        return self._reader.holding if self._reader is not None else bool(self._waiting)

    @property
    def malformed(self) -> int:
        return self._reader.malformed if self._reader is not None else 0

    def feed(self, text: str) -> list[Part]:
        if self._reader is not None:
            return self._reader.feed(text)
        self._waiting += text
        if self._waiting.startswith(self._opens):
            self._reader = self._calls
        elif not self._opens.startswith(self._waiting):
            self._reader = Words()
        else:
            return []
        return self._reader.feed(self._waiting)

    def finish(self, *, truncated: bool) -> list[Part]:
        if self._reader is not None:
            return self._reader.finish(truncated=truncated)
        return [("text", self._waiting)] if self._waiting else []


class Calls:
    """Calls as JSON objects, whatever stands between them."""

    def __init__(self) -> None:
        self.malformed = 0
        self._call = ""
        self._depth = 0
        self._quoted = False
        self._escaped = False

    @property
    def holding(self) -> bool:
        return self._depth > 0

    def feed(self, text: str) -> list[Part]:
        parts: list[Part] = []
        begun = 0
        for at, character in enumerate(text):
            before = self._depth
            self._count(character)
            if not before and self._depth:
                begun = at
            elif before and not self._depth:
                parts.append(self._read(self._call + text[begun : at + 1]))
                self._call = ""
        if self._depth:
            self._call += text[begun:]
        return parts

    def finish(self, *, truncated: bool) -> list[Part]:
        """A call that was cut is text: it was said, and is no call."""
        cut, self._call, self._depth = self._call, "", 0
        return [("text", cut)] if cut else []

    def _read(self, text: str) -> Part:
        """The grammar makes it a call; but one that no message can hold is text."""
        call: CalledTool | None = None
        with contextlib.suppress(ValueError, RecursionError):
            call = call_of(json.loads(text, parse_int=_integer, parse_float=_number))
        if call is None:
            self.malformed += 1
            return ("text", text)
        return call

    def _count(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = character == "\\"
            self._quoted = character != '"'
        elif character == '"':
            self._quoted = self._depth > 0
        elif character == "{":
            self._depth += 1
        elif character == "}" and self._depth:
            self._depth -= 1


def _integer(digits: str) -> int | float:
    """One that no message holds is a number like others."""
    if len(digits) < _DIGITS_OF_64_BITS:
        return int(digits)
    return _number(digits)


def _number(digits: str) -> float:
    """The nearest that there is: a grammar allows `1e999`."""
    most = sys.float_info.max
    return min(max(float(digits), -most), most)


_DIGITS_OF_64_BITS = 19
