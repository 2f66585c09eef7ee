"""What became of one request, from its arrival to its end: kept for `mlxd explain`, and the source
of the traffic log's records. Never anything of what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass, field

from mlxd.core.caller import Caller, Priority
from mlxd.core.errors import MlxdError
from mlxd.core.leg import Leg
from mlxd.core.trace_context import Trace

Fact = float | str | bool | None

MOST_NOTES = 64
"""Of one story; what comes after them is only counted."""
MOST_LEGS = 64
"""Of one story; of those that come after them nothing is told."""


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that happened."""

    after: float
    """Seconds since the request came."""
    what: str
    """Stable and snake_case, such as `admitted`; docs/reference/stories.md lists them."""
    facts: dict[str, Fact]


@dataclass(slots=True, eq=False)
class Story:
    """One request's. What is not known yet, or never came to be, is 0, empty or None.

    For use on the event loop's thread only; told as it happens, by whoever knows.
    """

    id: str
    """X-Request-Id: the caller's own, so not always unique."""
    path: str
    caller: Caller
    generation: int
    """Of the policies that it is served under."""
    wall: float
    """When it came, in seconds since the epoch."""
    clock: Callable[[], float]
    """The monotonic clock."""
    came: float
    """On it."""
    model: str = ""
    """Its own name (ModelCard.original), once it is resolved."""
    want: str = ""
    stream: bool = False
    priority: Priority = "medium"
    """The class that it waits and runs in."""
    wished: Priority | None = None
    """The class that it asked for; None: it named none."""
    keep_alive: float | None = None
    """Seconds that it wants its model kept in memory; -1: for ever, None: it does not say."""
    user: str = ""
    rated: bool = True
    requests: int = 1
    """Generations of the call: they share one slot."""
    cost: float = 0.0
    """Tokens that were expected of prompt and answer, all choices together."""
    max_tokens: int | None = None
    judged: float | None = None
    """Seconds from its arrival to its being asked whether it may run."""
    admitted: float | None = None
    """Seconds from its arrival to its slot."""
    leased: float | None = None
    """Seconds from its arrival to having its model in memory."""
    loaded: bool = False
    """Its model was not there, and was loaded."""
    accepted: float | None = None
    """Seconds from its arrival to a worker's acceptance."""
    first_token: float | None = None
    """Seconds from its arrival."""
    released: float | None = None
    """Seconds from its arrival to giving its slot back."""
    ended: float | None = None
    """Seconds from its arrival to its end; None: under way."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    replays: int = 0
    status: int = 0
    code: str = ""
    """Of the error that it ended with; empty: of none."""
    notes: list[Note] = field(default_factory=list)
    untold: int = 0
    """Notes that came after `MOST_NOTES`."""
    growing: dict[Sized, None] = field(default_factory=dict)
    """Tokens of its answers that are under way, and not in `completion_tokens` yet."""
    trace: Trace | None = None
    """What its spans hang on; None: it is not traced."""
    legs: list[Leg] = field(default_factory=list)
    """Its generations' times on workers, in the order in which they began; for its spans."""

    @property
    def now(self) -> float:
        """Seconds since it came."""
        return self.clock() - self.came

    @property
    def tokens(self) -> int:
        """That it has taken so far."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def computed(self) -> bool:
        """Whether its tokens are an engine's work: those of a prompt may only be counted."""
        return self.want != "prompt"

    @property
    def told_so_far(self) -> int:
        """Tokens of its answers, those included that are under way."""
        return self.completion_tokens + sum(map(len, self.growing))

    def failed(self, error: MlxdError) -> None:
        """It ends with this. Words about what a client has said are not told."""
        self.code = error.code
        facts: dict[str, Fact] = {"code": error.code, **error.numbers}
        if not error.quotes:
            facts["message"] = error.message
        if (line := error.policy) is not None:
            facts |= {"policy": line.key, "value": line.value, "place": line.place}
        if error.would_pass:
            facts["would_pass"] = error.would_pass
        if error.retry_after is not None:
            facts["retry_after"] = error.retry_after
        self.note("refused" if self.leased is None else "failed", **facts)

    def add_leg(self, leg: Leg) -> None:
        """While there are not too many."""
        if len(self.legs) < MOST_LEGS:
            self.legs.append(leg)

    def note(self, what: str, /, **facts: Fact) -> None:
        """Add one, while there are not too many."""
        if len(self.notes) < MOST_NOTES:
            self.notes.append(Note(self.now, what, facts))
        else:
            self.untold += 1


def untold(client: str = "local") -> Story:
    """For callers whom nobody asks afterwards: it tells no time."""
    return Story("", "", Caller(client), 0, 0.0, lambda: 0.0, 0.0)
