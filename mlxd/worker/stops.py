"""Stop strings, found in text that arrives in pieces."""

from __future__ import annotations


class StopStrings:
    """Lets text through until a stop string is complete; what may be the start of one waits.

    Which stop string ends the text depends on the text alone, not on how it was cut into pieces:
    it is the first to be complete, and of those complete at the same character the longest.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._needles = [_Needle(stop) for stop in stops if stop]
        self._held = ""
        self.found: str | None = None

    @property
    def empty(self) -> bool:
        """There are none to be found."""
        return not self._needles

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def feed(self, text: str) -> str:
        """What is now known to be no part of a stop string. Once one is found: nothing more."""
        if self.found is not None:
            return ""
        known = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            hit = self._advance(character)
            if hit is not None:
                self.found = hit
                self._held = ""
                return known[: position - len(hit)]
        waiting = max((needle.matched for needle in self._needles), default=0)
        cut = len(known) - waiting
        self._held = known[cut:]
        return known[:cut]

    def release(self) -> str:
        """The text ends or is interrupted here: what waited is no stop string."""
        held, self._held = self._held, ""
        for needle in self._needles:
            needle.matched = 0
        return held

    def _advance(self, character: str) -> str | None:
        hit: str | None = None
        for needle in self._needles:
            if needle.advance(character) and (hit is None or len(needle.text) > len(hit)):
                hit = needle.text
        return hit


class _Needle:
    """Knuth-Morris-Pratt: one stop string, and how much of it the text now ends with."""

    __slots__ = ("_shorter", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._shorter = [0] * (len(text) + 1)
        length = 0
        for i in range(1, len(text)):
            while length and text[i] != text[length]:
                length = self._shorter[length]
            if text[i] == text[length]:
                length += 1
            self._shorter[i + 1] = length

    def advance(self, character: str) -> bool:
        matched = self.matched
        while matched and self.text[matched] != character:
            matched = self._shorter[matched]
        if self.text[matched] == character:
            matched += 1
        self.matched = matched
        return matched == len(self.text)
