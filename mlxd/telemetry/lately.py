"""What clients got lately: tokens so far, and the latencies of the answers that ended last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxd.core.story import Story

WINDOW_S = 60.0
MOST = 512
"""Answers that are remembered for it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    at: float
    """On the monotonic clock."""
    ttft: float
    gap: float | None
    """Seconds between two tokens, the mean; None: it had one."""


class Lately:
    """Counted as requests end; on the event loop's thread."""

    def __init__(self) -> None:
        self._answers: deque[_Answer] = deque(maxlen=MOST)
        self._requests = 0
        self._prompt = 0
        self._completion = 0

    def ended(self, story: Story) -> None:
        """Count it."""
        self._requests += 1
        self._prompt += _read(story)
        self._completion += story.completion_tokens
        if story.first_token is None or story.ended is None:
            return
        gaps = story.completion_tokens - story.requests
        gap = story.decode_seconds / gaps if gaps > 0 and story.decode_seconds > 0 else None
        self._answers.append(_Answer(story.came + story.ended, story.first_token, gap))

    def report(self, now: float, under_way: Iterable[Story]) -> dict[str, Any]:
        """Tokens since the start, those of answers under way included; milliseconds, null where
        nothing ended in the last minute.
        """
        stories = list(under_way)
        recent = [answer for answer in self._answers if now - answer.at < WINDOW_S]
        return {
            "requests_ended": self._requests,
            "prompt_tokens": self._prompt + sum(map(_read, stories)),
            "completion_tokens": self._completion + sum(story.told_so_far for story in stories),
            "answers": len(recent),
            "ttft_ms": _percentiles([answer.ttft for answer in recent]),
            "token_gap_ms": _percentiles([one.gap for one in recent if one.gap is not None]),
        }


def _read(story: Story) -> int:
    """Tokens of its prompts, unless these were only counted."""
    return story.prompt_tokens if story.computed else 0


def _percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """By the nearest rank."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        name: round(1000 * ordered[round(share * last)], 3) if ordered else None
        for name, share in (("p50", 0.5), ("p95", 0.95))
    }
