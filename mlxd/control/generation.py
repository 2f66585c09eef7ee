"""One generation on one worker, as the daemon sees it: what has come, and by when more must.

Pieces arrive by calls (`take`, `hand_on`), events leave by iteration (`bursts`): everything that
came since the consumer last looked is one burst. Text that comes while it waits may be pushed past
it (`Transcript.push`). Deadlines cost nothing per token: one timer looks at the
time of the last piece and re-arms itself. Half way to a limit of silence it has the worker pinged,
so that at the limit a dead worker is told from a slow one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from mlxd.control.backlog import Backlog
from mlxd.control.exit import Verdict
from mlxd.control.transcript import Transcript
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.clock import Clock, stamp, within
from mlxd.core.counts import plural
from mlxd.core.errors import (
    ContextExceeded,
    DeadlineExceeded,
    InsufficientMemory,
    InvalidRequest,
    MlxdError,
    PolicyLine,
    UnsupportedFeature,
    WorkerStalled,
)
from mlxd.core.events import (
    Burst,
    Echo,
    Embedding,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    Reuse,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
)
from mlxd.ipc import messages as ipc

_REFUSALS: dict[str, type[InvalidRequest]] = {
    "invalid_request": InvalidRequest,
    "context_exceeded": ContextExceeded,
    "unsupported": UnsupportedFeature,
}

ENGINE_BYTES = "memory.worker_limits.mlx_memory_limit"
_MEMORY_RETRY_SECONDS = 5.0
LATE_SECONDS = 1.0
"""A timer that is later than this says that the daemon itself stood still."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The time limits of one generation in seconds, counted from the start of its prefill.

    `generation` is counted from the first of its prefills where there are several. What waits for
    memory in its worker has not started: silence of that worker ends it after `first_token`, and
    the worker refuses it when its `Generate.wait_seconds` are over.
    """

    generation: float
    first_token: float
    inter_token: float
    cancel_ack: float
    line: Callable[[str], PolicyLine]
    """Where a limit was set, asked only when it is passed."""
    engine_bytes: int = 0
    """What the operator lets its engine hold; 0: as much as the machine has."""


def _nothing(*_: object) -> None:
    """For a worker that nobody reaches."""


def _never() -> bool:
    return False


@dataclass(slots=True)
class Pulse:
    """A worker's signs of life, on the monotonic clock, and what is done for want of them."""

    at: float = 0.0
    """When it last reported a step."""
    forgiven: float = 0.0
    """Silence before this moment does not count: nobody listened."""
    heard: float = 0.0
    """When it last answered a ping."""
    ask: Callable[[], None] = _nothing
    """Pings it."""
    condemn: Callable[[Verdict], None] = _nothing
    """Ends it."""
    calm: Callable[[], bool] = _never
    """True while no worker may count as stalled, such as after the machine slept."""


class Generation:
    """Filled by its Worker, read by one consumer.

    A worker that steps is not silent, though one of its answers may be for a while: markup of a
    tool call, or a whole answer that travels in large pieces.
    """

    def __init__(
        self,
        id: int,
        limits: Limits,
        clock: Clock,
        pulse: Pulse,
        transcript: Transcript | None = None,
        *,
        priority: Priority = "medium",
        arrived: float = 0.0,
        fingerprint: str = "",
    ) -> None:
        """`transcript`: what earlier ones of the same request got, and where this one's goes.
        `arrived`: when the client's request came, on the monotonic clock.
        """
        self.id = id
        self.rank = PRIORITIES.index(priority)
        """Its class: who has the highest number goes first."""
        self.limits = limits
        self.transcript = transcript if transcript is not None else Transcript()
        self.transcript.reached = False
        self.leg = self.transcript.leg or self.transcript.next_leg(0, traced=False)
        """What is told of it for its spans."""
        self._goes_on = self.transcript.begun
        """Behind tokens that another has computed: how its prompt was read was told then."""
        self._pulse = pulse
        self.ended = False
        """True once the worker holds nothing of it any more."""
        self.cancelled = False
        """The worker has been told to drop it."""
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._accepted: asyncio.Future[Started] = self._loop.create_future()
        self._arrived = arrived
        self._fingerprint = fingerprint
        self._waiting = Backlog(clock)
        self._scores: list[TokenLogprob] = []
        """Of its prompt, until that is told."""
        self._error: MlxdError | None = None
        self.broken_at = 0.0
        """When its consumer was given an error; on the monotonic clock."""
        self._wake: asyncio.Future[None] | None = None
        self.created = clock.monotonic()
        self._started_at = 0.0
        """When its prefill began; 0 while it waits in the worker behind others."""
        self._begun_at = 0.0
        """When its first token was there."""
        self._last_piece = 0.0
        self._asked = 0.0
        """When the worker was last pinged for its silence."""
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    @property
    def under_way(self) -> bool:
        """Nothing has ended it, nor broken it off."""
        return not self.ended and self._error is None

    @property
    def stalled(self) -> bool:
        """It was broken off because nothing came."""
        return isinstance(self._error, WorkerStalled)

    # -- filled by the worker's handle

    def answer(self, message: ipc.Accepted | ipc.Refused) -> None:
        """The worker has checked the request; it may still refuse one that it accepted."""
        match message:
            case ipc.Accepted():
                self.leg.received = message.received
                self.leg.prompt_tokens = message.prompt_tokens
                self.leg.cached_tokens = message.cached_tokens
                if not self._accepted.done():
                    self.transcript.begin(message.prompt)
                    waited = self._clock.monotonic() - self._arrived - _late(message)
                    if self.transcript.cached_tokens is None:
                        self.transcript.cached_tokens = message.cached_tokens
                    tokens, cached = message.prompt_tokens, message.cached_tokens
                    start = Started(tokens, cached, waited, self._fingerprint)
                    self._accepted.set_result(start)
            case ipc.Refused():
                self.fail(_refusal(message, self.limits))

    def take(self, piece: ipc.Piece) -> None:
        """Something new came, which waits for `hand_on`. Of what comes after an error nothing is
        delivered.
        """
        if self._error is not None:
            if isinstance(piece, ipc.Ended | ipc.Cancelled):
                self._over(piece)
            return
        self._last_piece = self._clock.monotonic()
        if isinstance(piece, ipc.Text):  # all tokens are: no pattern is matched for them
            self._waiting.add(_event(piece))
        else:
            self._take_rare(piece)

    def hand_on(self) -> None:
        """What was taken goes to its consumer: that sleeps on where it is pushed."""
        if self._pushed():
            return
        self._notify()
        transcript = self.transcript
        behind = self.under_way and self._waiting.exceeds(transcript.most_waiting)
        if behind and transcript.too_much is not None:
            transcript.too_much()

    def _pushed(self) -> bool:
        """Whether what waits went out past its sleeping consumer, who has no part in it."""
        push = self.transcript.push
        if push is None or not self.under_way or not self._waiting.plain:
            return False
        if self._wake is None or self._wake.done() or not push(self._waiting.peek()):
            return False
        self._waiting.take()
        return True

    def _take_rare(self, piece: ipc.Piece) -> None:
        """Anything but a token's text."""
        match piece:
            case ipc.Ended():
                if self.transcript.tempo is not None:
                    spoken = piece.completion_tokens
                    self.transcript.tempo.tokens(self._last_piece, spoken, last=True)
                self._waiting.add(self._finished(piece))
                self._over(piece)
            case ipc.Cancelled():
                self._over(piece)
            case ipc.Echoed():
                self._scores += _logprobs(piece.logprobs)
                if not piece.more:
                    self.transcript.told_prompt = True
                    self._waiting.add(Echo(piece.text, tuple(self._scores)))
            case _:
                self._waiting.add(_event(piece))

    def _finished(self, piece: ipc.Ended) -> Finished:
        """Of one that goes on, `cached_tokens` are those of its beginning: what its own worker had
        to read again, or had kept of the answer itself, was none of its client's doing.
        """
        cached, first = piece.cached_tokens, self.transcript.cached_tokens
        if self._goes_on and first is not None:
            cached = first
        return _finished(piece, self.transcript.decode_seconds, cached)

    def note(self, tokens: Iterable[int]) -> None:
        """Tokens of its answer, which the pieces up to now have made known."""
        if self._error is None:
            self.transcript.add(tokens)
            if self.transcript.tempo is not None:
                self.transcript.tempo.tokens(self._clock.monotonic(), len(self.transcript.tokens))

    def started(self, at: float = 0.0) -> None:
        """The engine has begun with it: from now on its time limits count. `at`: when, by the
        worker's word.
        """
        self.leg.start(at)
        if not self._started_at:
            self._not_since_created()
        self._started_at = self._clock.monotonic()
        self.transcript.reached = True
        self.transcript.started_at = self.transcript.started_at or self._started_at
        self._look_again()

    def reused(self, reused: ipc.Reused) -> None:
        """The engine has begun with it, and need not compute all of its prompt."""
        self.leg.cached_tokens = reused.cached_tokens
        if self._error is None and self._told_start and not self._goes_on:
            start = self._accepted.result()
            cached = min(reused.cached_tokens, start.prompt_tokens)
            self.transcript.cached_tokens = cached
            reuse = Reuse(reused.missed, reused.missed_turn)
            self._waiting.add(replace(start, cached_tokens=cached, reuse=reuse))
            self._notify()

    def begun(self, at: float = 0.0) -> None:
        """Its first token is there: from now on silence is what counts. `at` as for `started`."""
        self.leg.first = at or stamp()
        self._last_piece = self._begun_at = self._clock.monotonic()
        if self.transcript.tempo is not None:
            asked = None if self.transcript.begun else self.created
            self.transcript.tempo.begun(self._begun_at, asked, len(self.transcript.tokens))
        self.transcript.begun = True
        self._look_again()

    def fail(self, error: MlxdError) -> None:
        """It ends here, and the worker holds nothing of it any more."""
        if self.ended:
            return
        self.leg.end(error.code)
        self._end()
        self._break(error)

    def interrupt(self, error: MlxdError) -> bool:
        """Its consumer gets `error`, and will cancel it; False: it has already been told its end.

        Until the worker confirms that, it may still hold what it held.
        """
        if not self.under_way:
            return False
        self._disarm()
        self._break(error)
        return True

    # -- read by the consumer

    def leave(self) -> None:
        """Nobody reads it any more: what has come and was not taken stays with its transcript; what
        still comes is for nobody.
        """
        if self._waiting:
            self.transcript.left.append(self._waiting.take())
        self.transcript.left_at = self._clock.monotonic()
        self.interrupt(MlxdError("its consumer has left"))

    @property
    def _told_start(self) -> bool:
        """Not to a consumer that has left before."""
        return self._accepted.done() and not self._accepted.cancelled()

    async def accepted(self) -> Started:
        """Its start. Raises what the worker refused it for, or what the worker died of."""
        return await self._accepted

    async def bursts(self) -> AsyncIterator[Burst]:
        """Events as they come, ended by `Finished`, or by the error that cut them off."""
        while True:
            if not self._waiting and self._error is None and not self.ended:
                self._wake = self._loop.create_future()
                await self._wake
            if self._waiting:
                yield self._waiting.take()
            elif self._error is not None:
                raise self._error
            elif self.ended:
                return

    async def until_ended(self, timeout: float) -> bool:
        """Wait until the worker holds nothing of it; False when it does not say so in time."""
        try:
            async with within(self._clock, timeout):
                while not self.ended:
                    if self._wake is None or self._wake.done():
                        self._wake = self._loop.create_future()
                    await asyncio.shield(self._wake)
        except TimeoutError:
            return False
        return True

    # -- inside

    def _break(self, error: MlxdError) -> None:
        """The consumer gets `error` after what has already come; the first one counts."""
        if self._error is None:
            self._error = error
            self.broken_at = self._clock.monotonic()
            if not self._started_at:
                self._not_since_created()
            if self._begun_at:
                spent = max(self._last_piece, self._begun_at) - self._begun_at
                self.transcript.decode_seconds += spent
        if not self._accepted.done():
            self._accepted.set_exception(self._error)
            self._accepted.exception()
        self._notify()

    def _over(self, piece: ipc.Ended | ipc.Cancelled) -> None:
        """By the worker's word."""
        self.leg.end(piece.reason if isinstance(piece, ipc.Ended) else "cancelled", piece.at)
        self._end()
        if isinstance(piece, ipc.Ended):  # the last of them are told behind it
            self.leg.tokens = piece.completion_tokens

    def _end(self) -> None:
        self.ended = True
        self.leg.tokens = len(self.transcript.tokens)
        self._disarm()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self) -> None:
        if self.under_way:
            self._arm()

    def _arm(self) -> None:
        """Look again when something would be due if nothing more came."""
        self._disarm()
        now = self._clock.monotonic()
        first = min(self._word_due(), self._quiet_since() + self._silence, self._last_moment())
        self._due = max(now, first)
        self._timer = self._loop.call_later(self._due - now, self._check)

    @property
    def _silence(self) -> float:
        """How long nothing may come."""
        return self.limits.inter_token if self._last_piece else self.limits.first_token

    def _quiet_since(self) -> float:
        """When the present silence began."""
        if not self._started_at:
            return max(self.created, self._pulse.at, self._pulse.forgiven)
        if self._last_piece:
            return max(self._last_piece, self._pulse.at, self._pulse.forgiven)
        return max(self._started_at, self._pulse.forgiven)

    def _alive_at(self) -> float:
        """The last sign of life of its worker, whatever that was about."""
        pulse = self._pulse
        return max(self.created, self._last_piece, pulse.at, pulse.heard, pulse.forgiven)

    def _word_due(self) -> float:
        """When its silent worker is pinged; or where it has been, when it must have answered: it
        may read a prompt for long, but not be deaf.
        """
        alive, patience = self._alive_at(), self.limits.inter_token
        return alive + (patience if self._asked > alive else min(patience, self._silence) / 2)

    def _last_moment(self) -> float:
        """When `generation` passes."""
        began = self.transcript.started_at
        return began + self.limits.generation if self._started_at else math.inf

    def _not_since_created(self) -> None:
        """What it has waited in this worker behind others is none of the time that it may take."""
        if self.transcript.started_at:
            self.transcript.started_at += self._clock.monotonic() - self.created

    def _check(self) -> None:
        """The timer: what has passed, if anything has."""
        self._timer = None
        now = self._clock.monotonic()
        late, mute = now - self._due, self._asked > self._alive_at()
        if late > LATE_SECONDS:
            self._forgive(now, late)
        elif now >= self._last_moment():
            self._break(too_long(self.limits, now - self.transcript.started_at))
            return
        elif now >= self._quiet_since() + self._silence or (mute and now >= self._word_due()):
            if not self._pulse.calm():
                self._judge(now)
                return
            self._forgive(now)
        elif now >= self._word_due():
            self._asked = now
            self._pulse.ask()
        self._arm()

    def _forgive(self, now: float, late: float = 0.0) -> None:
        """What nobody could hear was no silence, and the time in which nothing ran does not count:
        a whole interval more, in which what came meanwhile is read.
        """
        self._pulse.forgiven = now
        if self._started_at:
            self.transcript.started_at += late

    def _judge(self, now: float) -> None:
        """It was silent for too long: a worker that does not even answer a ping is dead."""
        unheard = self._pulse.heard < self._asked
        self._break(self._silent(now))
        if unheard:
            self._pulse.condemn("unresponsive")

    def _silent(self, now: float) -> MlxdError:
        """Which limit it was, in words."""
        limits = self.limits
        if now < self._quiet_since() + self._silence:
            return self._stalled("sign of life", now - self._alive_at())
        if self._last_piece:
            return self._stalled("token", now - self._quiet_since())
        return DeadlineExceeded(
            f"no first token within {limits.first_token:g} s",
            policy=limits.line("timeouts.first_token"),
            numbers=_passed(limits.first_token, now - self._quiet_since()),
            would_pass="a shorter prompt, or a longer limit",
        )

    def _stalled(self, what: str, silent: float) -> WorkerStalled:
        return WorkerStalled(
            f"no {what} for {self.limits.inter_token:g} s",
            retry_after=2.0,
            policy=self.limits.line("timeouts.inter_token_stall"),
            numbers=_passed(self.limits.inter_token, silent),
            would_pass="the same request, which another worker begins anew",
        )


def too_long(limits: Limits, elapsed: float) -> DeadlineExceeded:
    """`timeouts.generation` is over, after so many seconds."""
    error = DeadlineExceeded(
        f"the generation took longer than {limits.generation:g} s",
        policy=limits.line("timeouts.generation"),
        numbers=_passed(limits.generation, elapsed),
        would_pass="an answer of fewer tokens, or a longer limit",
    )
    error.in_vain = True
    return error


def _passed(limit: float, elapsed: float) -> dict[str, float]:
    return {"limit_seconds": limit, "elapsed_seconds": round(elapsed, 3)}


def _late(accepted: ipc.Accepted) -> float:
    """Seconds for which its word was under way, while its engine may have gone on."""
    return max(0.0, stamp() - accepted.at) if accepted.at else 0.0


def _refusal(refused: ipc.Refused, limits: Limits) -> MlxdError:
    key = refused.policy_key
    if key is None and limits.engine_bytes and refused.available_bytes == limits.engine_bytes:
        key = ENGINE_BYTES  # a worker does not know what bounds its budget
    policy = limits.line(key) if key is not None else None
    if refused.code == "insufficient_memory":
        return InsufficientMemory(
            refused.message,
            needed_bytes=refused.needed_bytes,
            available_bytes=refused.available_bytes,
            retry_after=_MEMORY_RETRY_SECONDS,
            policy=policy,
            would_pass="the same request once so much is free, or a shorter one",
        )
    return _REFUSALS[refused.code](
        refused.message,
        param=refused.param,
        policy=policy,
        numbers=refused.numbers,
        would_pass=_would_fit(refused.numbers),
    )


def _would_fit(numbers: Mapping[str, int]) -> str:
    if allowed := numbers.get("allowed_tokens"):
        return f"a prompt of at most {plural(allowed, 'token')}"
    if fitting := numbers.get("fitting_tokens"):
        return f"prompt and answer of at most {plural(fitting, 'token')} together"
    return ""


def _event(piece: ipc.Text | ipc.Reasoning | ipc.Vector | ipc.Call) -> GenerationEvent:
    if isinstance(piece, ipc.Text):
        return TextDelta(piece.text, _logprobs(piece.logprobs) if piece.logprobs else ())
    match piece:
        case ipc.Reasoning():
            return ReasoningDelta(piece.text, _logprobs(piece.logprobs))
        case ipc.Vector():
            return Embedding(piece.values)
        case ipc.Call():
            return ToolCall(piece.name, piece.arguments)


def _logprobs(entries: list[ipc.Logprob]) -> tuple[TokenLogprob, ...]:
    if not entries:
        return ()
    return tuple(TokenLogprob(e.token, e.raw, e.logprob, tuple(e.top)) for e in entries)


def _finished(piece: ipc.Ended, spent_before: float, cached: int) -> Finished:
    """`spent_before`: seconds of decoding by workers that did not finish."""
    return Finished(
        reason=piece.reason,
        prompt_tokens=piece.prompt_tokens,
        completion_tokens=piece.completion_tokens,
        cached_tokens=min(cached, piece.prompt_tokens),
        prefill_seconds=piece.prefill_seconds,
        decode_seconds=spent_before + piece.decode_seconds,
        stop_string=piece.stop_string,
        reasoning_tokens=piece.reasoning_tokens,
        malformed_calls=piece.malformed_calls,
        drafted_tokens=piece.drafted_tokens,
        accepted_tokens=piece.accepted_tokens,
    )
