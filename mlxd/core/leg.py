"""One leg of a request: a generation's time on one worker."""

from __future__ import annotations

from dataclasses import dataclass

from mlxd.core.clock import stamp


@dataclass(slots=True, eq=False)
class Leg:
    """Moments are as `clock.stamp` has them, 0 for what never was; the worker's own are measured in
    the worker, and told by it.
    """

    pid: int
    span_id: str
    """Of the span that it will be; empty: its request is not traced."""
    attempt: int
    """1 for the first worker; one more for each that goes on."""
    tokens_before: int
    """Of the answer, those that there were."""
    reason_before: str
    """Why the leg before this one ended; empty: there is none."""
    sent: float
    """When the worker was asked; the daemon's."""
    received: float = 0.0
    """When the worker had the request."""
    started: float = 0.0
    """When its prefill began."""
    first: float = 0.0
    """When its first token was there."""
    ended: float = 0.0
    """The worker's; where that cannot tell, when the daemon heard of the end."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    """Of the answer, all that there were at the end."""
    reason: str = ""
    """Why it ended: `stop`, `length`, `cancelled`, the end of the worker, or an error's code."""

    def start(self, at: float) -> None:
        """A prompt that is scored first has two beginnings: the first one counts."""
        self.started = self.started or at or stamp()

    def end(self, reason: str, at: float = 0.0) -> None:
        """`at`: by the worker's word. The first end counts."""
        if not self.reason:
            self.reason, self.ended = reason, at or stamp()
