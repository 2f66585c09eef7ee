"""Where prompts part: at the beginnings of their turns. Found in a prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxd.core.request import GenerationRequest
from mlxd.worker.prefix.marks import Marks
from mlxd.worker.prefix.outline import Outline

MOST_BOUNDARIES = 6
LEAST_APART = 64
"""Tokens between two boundaries: what lies between them is read again in no time."""
_LONGEST_HEAD = 1 << 16
"""Characters of a turn's beginning that are put into tokens once more."""
_AHEAD = 4
"""Marks among which that of the next message is looked for."""
_BEHIND_MARK = 40
"""Characters between a mark and what its turn says, at most."""


class Outlines:
    """Made for one tokenizer. Used by one thread."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._marks = Marks(tokenizer)

    def of(
        self,
        request: GenerationRequest,
        tokens: Sequence[int],
        ids: bytes,
        text: str | None = None,
        added: int = 0,
    ) -> Outline:
        """`ids`: the tokens, packed; `text`: what they stand for, without the first `added`."""
        marks = self._places(ids)
        if request.messages is None or request.context:
            return Outline(_apart(marks[-2:], len(tokens)))
        roles = [self._marks.role(tokens, at) for at in marks]
        turns = _turns(request, marks, roles)
        head = sum(1 for _ in takewhile("system".__eq__, roles))
        shared = marks[head] if head < len(marks) else 0
        if text is not None and (request.tools or shared < LEAST_APART):
            further = self._further(request, tokens, marks, head, text=text, added=added)
            shared = max(shared, further)
        places = [shared, *_later(request, marks, turns), *marks[-2:]]
        return Outline(_apart(places, len(tokens)), shared, turns)

    def _places(self, ids: bytes) -> list[int]:
        """Of all marks."""
        known = list(self._marks.names)
        if not known:
            return []
        array = np.frombuffer(ids, dtype="<u4")
        hits = array == known[0]
        for token in known[1:]:
            hits |= array == token
        places: list[int] = np.flatnonzero(hits).tolist()
        return places

    def _further(
        self,
        request: GenerationRequest,
        tokens: Sequence[int],
        marks: Sequence[int],
        head: int,
        *,
        text: str,
        added: int,
    ) -> int:
        """Where in the first user's turn, which the mark number `head` begins, begins what the user
        said: before it stand the system's words or the tools, where a template puts them there.
        """
        users = (message for message in request.messages or () if message.role != "system")
        first = next((message.content.strip() for message in users), "")
        begin, behind = self._turn_in(text, tokens, marks, head)
        end = text.find(first, begin, behind) if first and begin >= 0 else -1
        if not begin + (_BEHIND_MARK if marks else 0) < end <= begin + _LONGEST_HEAD:
            return 0
        start = marks[head] if marks else added
        before: list[int] = self._tokenizer.encode(text[begin:end], add_special_tokens=False)
        pairs = zip(before, tokens[start : start + len(before)], strict=False)
        return start + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _turn_in(
        self, text: str, tokens: Sequence[int], marks: Sequence[int], number: int
    ) -> tuple[int, int]:
        """From where to where the turn of a mark goes in the text: of all of it, where there are no
        marks; from -1, where that is not known.
        """
        spots: list[int] = []
        for at in marks[: number + 2]:
            spots.append(text.find(self._marks.names[tokens[at]], spots[-1] + 1 if spots else 0))
            if spots[-1] < 0:
                return -1, -1
        begin, behind, *_ = (*(spots if marks else [0])[number:], len(text), -1)
        return (begin, behind) if behind >= 0 else (-1, -1)


def _turns(
    request: GenerationRequest, marks: Sequence[int], roles: Sequence[str]
) -> tuple[int, ...]:
    """Message by message, the next mark of its role. Results of tools may share one, and be in a
    user's; a role that has no marks of its own begins with the next one's.
    """
    turns: list[int] = []
    known = set(roles)
    at, before = -1, ""
    for message in request.messages or ():
        role = message.role
        if role == "tool" and "tool" not in known:
            role = "user"
        ahead = roles[at + 1 : at + 1 + _AHEAD]
        grouped = message.role == before == "tool" and ahead[:1] != [role]
        if role in ahead and not grouped:
            at += 1 + ahead.index(role)
            turns.append(marks[at])
        elif not grouped and (role in known or at + 1 >= len(marks)):
            break
        else:
            turns.append(marks[at] if grouped else marks[at + 1])
        before = message.role
    return tuple(turns)


def _later(request: GenerationRequest, marks: Sequence[int], turns: Sequence[int]) -> list[int]:
    """The beginnings of the last message that a user sent, of what follows it, and of the last."""
    known = list(zip(request.messages or (), turns, strict=False))
    users = [at for message, at in known if message.role == "user"]
    behind = [at for at in marks if users and at > users[-1]][:1]
    last = turns[-1:] if len(turns) == len(request.messages or ()) else ()
    return [*users[-1:], *behind, *last]


def _apart(places: Sequence[int], length: int) -> tuple[int, ...]:
    """In rising order, far enough from each other and from the beginning."""
    chosen: list[int] = []
    for at in sorted(set(places)):
        if (chosen[-1] if chosen else 0) + LEAST_APART <= at < length:
            chosen.append(at)
    return tuple(chosen[:1] + chosen[1:][1 - MOST_BOUNDARIES :])
