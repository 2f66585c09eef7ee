"""What a request's story is told while it is served. Nothing of it is done for each token."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from mlxd.control.resident import Load
from mlxd.core.errors import MlxdError
from mlxd.core.events import Burst, Echo, Finished, Reuse, Started
from mlxd.core.request import Message
from mlxd.core.story import Fact, Story

_EACH = 8
"""Generations of one call that are told one by one; of more of them only the sums are."""


def leased(story: Story, load: Load | None) -> None:
    """It has its model in memory, which had to be loaded for that or, with None, was there."""
    story.leased, story.loaded = story.now, load is not None
    waited = round(story.leased - (story.admitted or 0.0), 3)
    if load is None:
        story.note("leased", loaded=False, waited_seconds=waited)
        return
    story.note(
        "leased", loaded=True, waited_seconds=waited,
        room_seconds=round(load.room_seconds, 3), load_seconds=round(load.seconds, 3),
        spare=load.spare, evicted=", ".join(load.evicted), **_reason(load.put_off),
    )  # fmt: skip


def _reason(why: MlxdError | None) -> dict[str, Fact]:
    """Why there was no room at first."""
    if why is None:
        return {}
    facts: dict[str, Fact] = {"because": why.message}
    if (line := why.policy) is not None:
        facts |= {"policy": line.key, "value": line.value, "place": line.place}
    return facts


class _Grown:
    """What there is of an answer behind its first `before` tokens."""

    def __init__(self, answer: Sized, before: int) -> None:
        self._answer = answer
        self._before = before

    def __len__(self) -> int:
        return max(0, len(self._answer) - self._before)


class Telling:
    """One generation's part in the story of its call."""

    def __init__(
        self,
        story: Story,
        tokens: int = 0,
        decode_seconds: float = 0.0,
        turns: Sequence[Message] = (),
        *,
        answer: Sized = (),
    ) -> None:
        """`tokens` of its answer there are already, and the time that they took: another call's
        story has told them. `turns`: of the request, as the client sent them. `answer` grows
        with its tokens.
        """
        self.listens = True
        """Nothing of the answer has come yet: `hear` is to be told what comes."""
        self._story = story
        self._tokens = tokens
        self._grown = _Grown(answer, tokens)
        story.growing[self._grown] = None
        self._decode_seconds = decode_seconds
        self._turns = turns
        self._counts = False
        """Its prompt is in this story; of one that goes on, it is in an earlier one."""
        self._prompt = 0
        self._cached = 0
        self._behind = False
        self._ended = False

    def hear(self, burst: Burst) -> None:
        for event in burst:
            if isinstance(event, Started):
                self._began(event)
            elif not isinstance(event, Echo | Finished):
                self.listens = False
                if self._story.first_token is None:
                    self._story.first_token = self._story.now
                return

    def replayed(self, reason: str, tokens: int) -> None:
        """Its worker is gone, and another goes on behind so many tokens."""
        self._story.replays += 1
        self._story.note("replayed", reason=reason, tokens=tokens)

    def begun_anew(self) -> None:
        """Nothing that came of its answer counts any more."""
        self.listens = True
        self._tokens, self._decode_seconds = 0, 0.0
        self._story.note("begun_anew")

    def fell_behind(self, tokens: int) -> None:
        """Its client has not taken what there is, of so many tokens: it leaves the engine. That may
        be so again and again, and is told once.
        """
        if not self._behind:
            self._behind = True
            self._note("fell_behind", tokens=tokens)

    def finished(self, end: Finished) -> None:
        self._end()
        story = self._story
        if end.completion_tokens and story.first_token is None:
            story.first_token = story.now  # none of them was text
        story.completion_tokens += max(0, end.completion_tokens - self._tokens)
        if self._counts:
            story.cached_tokens += end.cached_tokens - self._cached
        story.prefill_seconds += end.prefill_seconds
        story.decode_seconds += max(0.0, end.decode_seconds - self._decode_seconds)
        self._note(
            "finished", reason=end.reason, completion_tokens=end.completion_tokens,
            prefill_seconds=round(end.prefill_seconds, 4),
            decode_seconds=round(end.decode_seconds, 4),
            drafted_tokens=end.drafted_tokens, accepted_tokens=end.accepted_tokens,
        )  # fmt: skip

    def cut(self, tokens: int, decode_seconds: float) -> None:
        """It is over, with its end or without; `tokens` of its answer there were."""
        if not self._ended:
            self._end()
            self._story.completion_tokens += tokens - self._tokens
            self._story.decode_seconds += decode_seconds - self._decode_seconds

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            del self._story.growing[self._grown]

    def _began(self, start: Started) -> None:
        self._counts = self._counts or start.reuse is None
        if self._counts:
            self._story.cached_tokens += start.cached_tokens - self._cached
            self._cached = start.cached_tokens
        if start.reuse is None:
            self._accepted(start)
        else:
            self._read(start.cached_tokens, start.reuse)

    def _accepted(self, start: Started) -> None:
        story = self._story
        story.prompt_tokens += start.prompt_tokens - self._prompt
        self._prompt = start.prompt_tokens
        if story.accepted is None:
            story.accepted = story.now
        self._note(
            "started", prompt_tokens=start.prompt_tokens, cached_tokens=start.cached_tokens
        )  # fmt: skip

    def _read(self, cached: int, reuse: Reuse) -> None:
        """Why no more of it was cached, in numbers alone. People count from 1."""
        missed, turn = reuse.missed >= 0, reuse.missed_turn
        known = missed and 0 <= turn < len(self._turns)
        self._note(
            "reused", cached_tokens=cached,
            missed_token=reuse.missed + 1 if missed else None,
            missed_message=turn + 1 if known else None,
            missed_role=self._turns[turn].role if known else None,
        )  # fmt: skip

    def _note(self, what: str, **facts: Fact) -> None:
        if self._story.requests <= _EACH:
            self._story.note(what, **facts)
