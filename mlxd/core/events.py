"""What a generation produces, in order: `Started`, deltas and tool calls, one `Finished`.

Where something else than an answer is wanted: `Started`, `Embedding` or the prompt as one
`TextDelta`, `Finished`. A prompt that is to be told with its answer comes as `Echo`, before it.

Failure is not an event: inside the daemon it is an exception. Events that became ready together
travel together, as a `Burst`; a `Completion` is the fold of them all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token; `top` lists the likeliest first, as (token, raw, logprob)."""

    token: str
    raw: bytes
    """The token's own bytes: possibly half a character."""
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Reuse:
    """What the reading of a prompt begins with."""

    missed: int = -1
    """The first token of the prompt in which the nearest one that is kept differs; -1: none begins
    like it, or all that could serve did."""
    missed_turn: int = -1
    """Which of the request's messages that token is in; -1: in none, or nobody knows."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has accepted the request; always the first event. It comes again, with `reuse`, when
    its prompt begins to be read: what is cached is sure only then.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    """Of these, those that are not computed again; without `reuse`: by a look in passing."""
    wait_seconds: float = 0.0
    """From arrival to acceptance: waiting and loading."""
    fingerprint: str = ""
    """Of what computes the answer: the same as long as a seed gives the same text."""
    reuse: Reuse | None = None
    """None: the prompt is not being read yet, or its worker keeps nothing."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer; may be empty when only `logprobs` has news."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt. Of its first token there is no log-probability: it is NaN."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the prompt means: float32, the low end first; not normalised."""

    vector: bytes


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One complete call."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end, and what it took. Seconds are the worker's own, measured."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    stop_string: str | None = None
    """Which of the request's stop strings ended it, if one did."""
    reasoning_tokens: int = 0
    """Of the completion's, those of its thinking."""
    malformed_calls: int = 0
    """Tool calls that no parser could read; their text was delivered as it stood."""
    drafted_tokens: int = 0
    """Tokens that a model which drafts has proposed."""
    accepted_tokens: int = 0
    """Of these, those that came into the answer; drafted ones that did not cost time alone."""
    context_full: bool = False
    """Prompt and answer are as long as the model's context."""
    context: tuple[int, ...] = ()
    """The prompt's tokens and the answer's, where `GenerationRequest.tell_context` asked."""


Piece = TextDelta | ReasoningDelta | ToolCall
"""What an answer is made of."""
GenerationEvent = Started | TextDelta | ReasoningDelta | ToolCall | Echo | Embedding | Finished
Burst = Sequence[GenerationEvent]
"""Events that became ready together, in order; never empty."""


_EVENT_BYTES = 256
_LOGPROB_BYTES = 200
"""Of a token, and of each that it might have been."""


def bytes_of(event: GenerationEvent) -> int:
    """About what one takes that is kept."""
    if not isinstance(event, TextDelta | ReasoningDelta | Echo):
        return _EVENT_BYTES
    tokens = sum(1 + len(entry.top) for entry in event.logprobs)
    return _EVENT_BYTES + len(event.text) + _LOGPROB_BYTES * tokens


@dataclass(slots=True)
class Completion:
    """A whole generation: the fold of its events."""

    started: Started | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    """Text, reasoning and calls in the order they came: deltas of a kind that follow each other are
    one.
    """
    echo: Echo | None = None
    embedding: Embedding | None = None
    finished: Finished | None = None


class Fold:
    """Becomes a Completion, burst by burst."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._whole = Completion()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._runs: list[list[Piece]] = []

    def add(self, burst: Burst) -> None:
        whole = self._whole
        for event in burst:
            match event:
                case Started():
                    if event.reuse is None:  # it may begin anew
                        self._begin()
                        whole = self._whole
                    whole.started = event
                case TextDelta():
                    self._text.append(event.text)
                    whole.logprobs.extend(event.logprobs)
                    self._run_on(event)
                case ReasoningDelta():
                    self._reasoning.append(event.text)
                    whole.logprobs.extend(event.logprobs)
                    self._run_on(event)
                case ToolCall():
                    whole.tool_calls.append(event)
                    self._runs.append([event])
                case Echo():
                    whole.echo = event
                case Embedding():
                    whole.embedding = event
                case Finished():
                    whole.finished = event

    @property
    def size(self) -> int:
        """In bytes, about."""
        return sum(bytes_of(delta) for run in self._runs for delta in run)

    def whole(self) -> Completion:
        self._whole.text = "".join(self._text)
        self._whole.reasoning = "".join(self._reasoning)
        self._whole.pieces = [_joined(run) for run in self._runs]
        return self._whole

    def _run_on(self, delta: TextDelta | ReasoningDelta) -> None:
        if self._runs and type(self._runs[-1][0]) is type(delta):
            self._runs[-1].append(delta)
        else:
            self._runs.append([delta])


def _joined(run: Sequence[Piece]) -> Piece:
    first = run[0]
    if isinstance(first, ToolCall):
        return first
    deltas = [delta for delta in run if not isinstance(delta, ToolCall)]
    text = "".join(delta.text for delta in deltas)
    return type(first)(text, tuple(chain.from_iterable(delta.logprobs for delta in deltas)))


async def collect(bursts: AsyncIterator[Burst], fold: Fold | None = None) -> Completion:
    """Fold a generation into one Completion; `fold` has what came of it before."""
    fold = fold or Fold()
    async for burst in bursts:
        fold.add(burst)
    return fold.whole()


async def collect_all(
    bursts: AsyncIterator[tuple[int, Burst]], folds: Sequence[Fold]
) -> list[Completion]:
    """Fold several generations, whose bursts come with their numbers, one into each of `folds`."""
    async for number, burst in bursts:
        folds[number].add(burst)
    return [fold.whole() for fold in folds]
