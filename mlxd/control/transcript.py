"""What one request has got so far: all that another worker needs to go on behind it, be it for
another request of the same client.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Iterable

from mlxd.control.tempo import Tempo
from mlxd.core.clock import stamp
from mlxd.core.events import Burst
from mlxd.core.leg import Leg
from mlxd.core.trace_context import new_span_id
from mlxd.ipc import messages as ipc

Push = Callable[[Burst], bool]
"""Takes a burst at once; False: not now, and it goes the ordinary way."""


class Origin:
    """Of which model all that one call gets is: its parts are not of two."""

    __slots__ = ("came_back", "key", "other_files", "parts", "told")

    def __init__(self) -> None:
        self.key = ""
        """Of what the worker that told the first prompt computes by (ipc.Ready); empty: not known.
        """
        self.told = False
        """A worker has told a prompt of it."""
        self.came_back = False
        """It goes on from what an earlier request of its client has left."""
        self.parts = 1
        self.other_files = False
        """Its model computes by others than the catalogue knew when it was begun."""


class Transcript:
    """Outlives the generations of its request, which fill it one after the other.

    What its tokens made known has been given to the consumer, is given before it learns of an
    error, or is among what it has left (`left`): see `Taken`.
    """

    def __init__(self, origin: Origin | None = None) -> None:
        """`origin`: that of its call, where it has others."""
        self.tempo: Tempo | None = None
        """Is told how fast it grows."""
        self.origin = origin or Origin()
        self.prompt = b""
        """The prompt in tokens, packed; empty until a worker has told it."""
        self.tokens: array[int] = array("I")
        """The answer's."""
        self.told_start = False
        """The consumer has had its `Started`."""
        self.told_prompt = False
        """It has had its prompt, where that was to be told before the answer."""
        self.reached = False
        """The present worker's engine has begun with it."""
        self.begun = False
        """A worker has computed a token of the answer."""
        self.started_at = 0.0
        """When its prefill began for the first time, on the monotonic clock; 0: it has not."""
        self.decode_seconds = 0.0
        """What generations that did not finish have spent behind their first token."""
        self.cached_tokens: int | None = None
        """Of its prompt, those that the worker which began the answer need not read; None: it
        has not said.
        """
        self.finished = False
        """The consumer has had its end."""
        self.counted = False
        """Its end is in the figures; the consumer may get it once more."""
        self.left: list[Burst] = []
        """What had come when the consumer went away, and was not taken."""
        self.left_at = 0.0
        """When it went; on the monotonic clock, 0: it has not."""
        self.push: Push | None = None
        """Asked to take what comes while the consumer waits for it."""
        self.most_waiting = 256 << 10
        """Bytes that are kept for a consumer that does not take them."""
        self.too_much: Callable[[], object] | None = None
        """Called while more has come than that."""
        self.leg: Leg | None = None
        """Its present one, or its last."""
        self._awaited: tuple[int, Callable[[], object]] | None = None

    def begin(self, prompt: bytes) -> None:
        """A worker tells its prompt."""
        self.prompt = self.prompt or prompt
        self.origin.told = self.origin.told or bool(prompt)

    def add(self, tokens: Iterable[int]) -> None:
        """More of the answer."""
        self.tokens.extend(tokens)
        if self._awaited is not None and len(self.tokens) >= self._awaited[0]:
            _, call = self._awaited
            self._awaited = None
            asyncio.get_running_loop().call_soon(call)

    def at(self, count: int, call: Callable[[], object]) -> None:
        """Have `call` called once, soon after there are so many tokens, whoever takes them when.
        It replaces what was asked for before.
        """
        self._awaited = (count, call)

    def give_back(self, burst: Burst) -> None:
        """It was taken, and has reached nobody."""
        self.left.append(burst)
        self.finished = False

    def go_on(self, now: float, tempo: Tempo | None) -> None:
        """For another consumer: the time in which it had none does not count."""
        self.tempo = tempo
        self._awaited = None
        if self.left_at and self.started_at:
            self.started_at += now - self.left_at
        self.left_at = 0.0

    def begin_anew(self, *, told_start: bool) -> None:
        """With another model: nothing of what there is counts any more, but for the time that it
        took. `told_start`: its consumer is not told once more that it starts.
        """
        self.prompt, self.cached_tokens = b"", None
        del self.tokens[:]
        self.told_start = self.told_start and told_start
        self.told_prompt = self.begun = False
        self.decode_seconds = 0.0
        self._awaited = None

    def next_leg(self, pid: int, *, traced: bool) -> Leg:
        """It begins on another worker, or anew on the same one."""
        before = self.leg
        self.leg = Leg(
            pid=pid,
            span_id=new_span_id() if traced else "",
            attempt=before.attempt + 1 if before is not None else 1,
            tokens_before=len(self.tokens),
            reason_before=before.reason if before is not None else "",
            sent=stamp(),
        )
        return self.leg

    def resume(self) -> ipc.Resume | None:
        """None where no worker has said what the prompt is: it begins at the beginning."""
        if not self.prompt:
            return None
        return ipc.Resume(self.prompt, ipc.packed(self.tokens), self.told_prompt)
