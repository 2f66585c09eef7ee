"""What the programs' own clients note."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from benchmarks.streams import Ask, Stream


class _Growing(list[tuple[float, bytes]]):
    """One more record comes, the last one, while somebody reads those that are there."""

    def __init__(self, stream: Stream, texts: list[str]) -> None:
        super().__init__(_record(text) for text in texts[:-1])
        self._stream, self._last = stream, texts[-1]

    def __iter__(self) -> Iterator[tuple[float, bytes]]:
        there = self[:]
        if self._stream.ended == float("inf"):
            self.append(_record(self._last))
            self._stream.ended = time.monotonic()
        return iter(there)


def _record(text: str) -> tuple[float, bytes]:
    return time.monotonic(), json.dumps({"response": text}).encode()


def test_a_record_that_comes_while_an_answer_is_looked_at_is_not_missed_afterwards() -> None:
    stream = Stream(Ask(0, "/api/generate", "m", words=1, tokens=3), time.monotonic())
    stream.records = _Growing(stream, ["a", "b", "c"])
    assert stream.text == "ab"
    assert stream.text == "abc"
