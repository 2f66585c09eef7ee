"""One generation on one worker, as the daemon sees it: what has come, and by when more must.

Pieces arrive by calls (`take`), events leave by iteration (`bursts`): everything that came since
the consumer last looked is one burst. Deadlines cost nothing per token: one timer looks at the
time of the last piece and re-arms itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from mlxd.control.backlog import Backlog
from mlxd.core.clock import Clock, within
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
    Finished,
    ReasoningDelta,
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

_MEMORY_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The time limits of one generation in seconds, counted from the start of its prefill.

    What waits for memory in its worker has not started: silence of that worker ends it after
    `first_token`, and the worker refuses it when its `Generate.wait_seconds` are over.
    """

    generation: float
    first_token: float
    inter_token: float
    cancel_ack: float
    line: Callable[[str], PolicyLine]
    """Where a limit was set, asked only when it is passed."""


@dataclass(slots=True)
class Pulse:
    """When a worker last reported a step; on the monotonic clock."""

    at: float = 0.0


class Generation:
    """Filled by its Worker, read by one consumer.

    A worker that steps is not silent, though one of its answers may be for a while: markup of a
    tool call, or a whole answer that travels in large pieces.
    """

    def __init__(self, id: int, limits: Limits, clock: Clock, pulse: Pulse) -> None:
        self.id = id
        self.limits = limits
        self._pulse = pulse
        self.ended = False
        """True once the worker holds nothing of it any more."""
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._accepted: asyncio.Future[ipc.Accepted] = self._loop.create_future()
        self._waiting = Backlog(clock)
        self._error: MlxdError | None = None
        self._wake: asyncio.Future[None] | None = None
        self.created = clock.monotonic()
        self._started_at = 0.0
        """When its prefill began; 0 while it waits in the worker behind others."""
        self._last_piece = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    # -- filled by the worker's handle

    def answer(self, message: ipc.Accepted | ipc.Refused) -> None:
        """The worker has checked the request; it may still refuse one that it accepted."""
        match message:
            case ipc.Accepted():
                if not self._accepted.done():
                    self._accepted.set_result(message)
            case ipc.Refused():
                self.fail(_refusal(message, self.limits.line))

    def take(self, piece: ipc.Piece) -> None:
        """Something new came; after an error nobody reads any more of it."""
        self._last_piece = self._clock.monotonic()
        match piece:
            case ipc.Text() | ipc.Reasoning() | ipc.Call() if self._error is not None:
                pass
            case ipc.Text():
                self._waiting.add(TextDelta(piece.text, _logprobs(piece.logprobs)))
            case ipc.Reasoning():
                self._waiting.add(ReasoningDelta(piece.text, _logprobs(piece.logprobs)))
            case ipc.Call():
                self._waiting.add(ToolCall(piece.name, piece.arguments))
            case ipc.Ended():
                self._waiting.add(_finished(piece))
                self._end()
            case ipc.Cancelled():
                self._end()
        if self._waiting.too_large and not self.ended:
            self.interrupt(
                DeadlineExceeded(
                    "the client takes its answer too slowly",
                    policy=self.limits.line("timeouts.client_write"),
                )
            )
        self._notify()

    def started(self) -> None:
        """The engine has begun with it: from now on its time limits count."""
        self._started_at = self._clock.monotonic()
        self._look_again()

    def begun(self) -> None:
        """Its first token is there: from now on silence is what counts."""
        self._last_piece = self._clock.monotonic()
        self._look_again()

    def fail(self, error: MlxdError) -> None:
        """It ends here, and the worker holds nothing of it any more."""
        if self.ended:
            return
        self._end()
        self._break(error)

    def interrupt(self, error: MlxdError) -> bool:
        """Its consumer gets `error`, and will cancel it; False: it has already been told its end.

        Until the worker confirms that, it may still hold what it held.
        """
        if self.ended or self._error is not None:
            return False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._break(error)
        return True

    # -- read by the consumer

    async def accepted(self) -> ipc.Accepted:
        """Raises what the worker refused it for, or what the worker died of."""
        return await self._accepted

    async def bursts(self) -> AsyncIterator[Burst]:
        """Events as they come, ended by `Finished`, or by the error that cut them off."""
        while True:
            if not self._waiting and self._error is None and not self.ended:
                self._wake = self._loop.create_future()
                await self._wake
                self._wake = None
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
                    self._wake = self._loop.create_future()
                    await self._wake
        except TimeoutError:
            return False
        return True

    # -- inside

    def _break(self, error: MlxdError) -> None:
        """The consumer gets `error` after what has already come."""
        self._error = error
        if not self._accepted.done():
            self._accepted.set_exception(error)
            self._accepted.exception()
        self._notify()

    def _end(self) -> None:
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _look_again(self) -> None:
        if not self.ended and self._error is None:
            self._arm()

    def _arm(self) -> None:
        """Look again when the nearest limit would pass if nothing more came."""
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, self._nearest() - self._clock.monotonic())
        self._timer = self._loop.call_later(delay, self._check)

    def _nearest(self) -> float:
        """When the first of its limits passes."""
        limits = self.limits
        if not self._started_at:
            return max(self.created, self._pulse.at) + limits.first_token
        if self._last_piece:
            silence = max(self._last_piece, self._pulse.at) + limits.inter_token
        else:
            silence = self._started_at + limits.first_token
        return min(silence, self._started_at + limits.generation)

    def _passed(self) -> MlxdError:
        """Which limit it was, in words."""
        limits = self.limits
        if self._started_at and self._clock.monotonic() >= self._started_at + limits.generation:
            return DeadlineExceeded(
                f"the generation took longer than {limits.generation:g} s",
                policy=limits.line("timeouts.generation"),
            )
        if self._last_piece:
            return WorkerStalled(
                f"no token for {limits.inter_token:g} s",
                retry_after=2.0,
                policy=limits.line("timeouts.inter_token_stall"),
            )
        return DeadlineExceeded(
            f"no first token within {limits.first_token:g} s",
            policy=limits.line("timeouts.first_token"),
        )

    def _check(self) -> None:
        if self._clock.monotonic() < self._nearest():
            self._arm()
            return
        self._timer = None
        self._break(self._passed())


def _refusal(refused: ipc.Refused, line: Callable[[str], PolicyLine]) -> MlxdError:
    key = refused.policy_key
    policy = line(key) if key is not None else None
    if refused.code == "insufficient_memory":
        return InsufficientMemory(
            refused.message,
            needed_bytes=refused.needed_bytes,
            available_bytes=refused.available_bytes,
            retry_after=_MEMORY_RETRY_SECONDS,
            policy=policy,
        )
    return _REFUSALS[refused.code](refused.message, param=refused.param, policy=policy)


def _logprobs(entries: list[ipc.Logprob]) -> tuple[TokenLogprob, ...]:
    if not entries:
        return ()
    return tuple(TokenLogprob(e.token, e.raw, e.logprob, tuple(e.top)) for e in entries)


def _finished(piece: ipc.Ended) -> Finished:
    return Finished(
        reason=piece.reason,
        prompt_tokens=piece.prompt_tokens,
        completion_tokens=piece.completion_tokens,
        cached_tokens=piece.cached_tokens,
        prefill_seconds=piece.prefill_seconds,
        decode_seconds=piece.decode_seconds,
        stop_string=piece.stop_string,
    )
