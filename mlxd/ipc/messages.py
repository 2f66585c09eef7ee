"""Every message between daemon and worker, and its one encoding (a length, then MessagePack).

Down: `Launch` once; then `Generate`, `Cancel`, `Budget`, `Tuning`, `Trim`, `PrefixRules`,
`CacheAsk`, `CacheClear`, `Ping`, `Shutdown`. Up: `Hello` before all else; `Warm` once, whether it
was launched by then or not; `Loading` while it loads, then `Ready` or `LoadFailed` once; then
`Accepted` or `Refused` for each `Generate`, `Output` once per engine step, `Need`, `Observed`,
`CacheStats`, `Noted`, `Lacks`, `Pong`.
Every `Generate` is ended by exactly one of `Refused`, a piece `Ended`, a piece `Cancelled`, or the
end of the socket.

What a worker was asked and has said about a request is enough to go on with it in another one: see
`Resume`.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from mlxd.core.events import FinishReason
from mlxd.core.footprint import Footprint
from mlxd.core.request import GenerationRequest, Sampling

MAX_FRAME_BYTES = 64 * 2**20
PROTOCOL = 1
"""Which messages these are: raised with each change of one. An upgrade replaces the files that a
running daemon starts its next worker from.
"""
EXIT_MEMORY = 71
"""A worker's exit status when its engine found no memory (EX_OSERR)."""
_LENGTH = struct.Struct("!I")


class Resume(msgspec.Struct, frozen=True):
    """A request that another worker has begun: go on where it was cut off.

    Nothing that these tokens made known is said again; counts and limits include them.
    """

    prompt: bytes
    """The prompt in tokens, as `Accepted.prompt` told it; `unpacked` reads it."""
    tokens: bytes = b""
    """The answer's tokens so far, in the same encoding."""
    echoed: bool = False
    """The prompt has been told, where it was to be."""


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Run one request. `sampling` is resolved: client over model over dialect."""

    id: int
    request: GenerationRequest
    sampling: Sampling
    max_prompt: int
    """limits.tokens.max_prompt: a longer prompt is refused."""
    max_output: int
    """limits.tokens.max_output: a longer answer is cut (finish `length`)."""
    context: int
    """Tokens of prompt and answer together; at most the model's own."""
    expected_output: int = 1024
    """memory.reserve.expected_output: tokens of the answer that memory is kept for at first."""
    wait_seconds: float = 300.0
    """How long it may wait for memory in the worker; 0: it is refused when it does not fit now."""
    resume: Resume | None = None
    """Set where another worker has begun it."""
    context_key: str = ""
    """The policy that allows no more `context`; empty: the model does not."""
    owner: str = ""
    """Whose prompts may begin with what was read for this one; the system's turn serves all."""
    trace: str = ""
    """The `traceparent` of what the worker does for it, for its words about it; empty: none."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop one request; answered by a `Cancelled` piece. For an ended one: nothing happens."""

    id: int


class Budget(msgspec.Struct, frozen=True, tag="budget"):
    """What the engine may hold from now on. It is also the answer to a `Need`."""

    bytes: int
    """Weights, caches and what a step computes with, together; 0: no limit."""
    most: int
    """What a `Need` could be granted at best, were everything else idle; 0: no limit."""
    cache_bytes: int
    """Freed buffers kept for reuse, beside that."""
    answers: int = 0
    """The `Need.id` that this answers; 0: none."""
    wired_bytes: int = 0
    """Memory to wire down for a GPU; 0: none."""
    exclusive: bool = False
    """Whether the engine steps only while no other exclusive one does."""
    prefix_bytes: int = 0
    """What beginnings of prompts may take that are kept for later ones, beside `bytes`; 0: none are
    kept. Told to hold less, a worker gives the rest back before its next step, and says so."""


class PrefixFiles(msgspec.Struct, frozen=True):
    """Where beginnings of prompts are kept on disk."""

    folder: bytes
    """Of all models together, as the system names it: that need not be UTF-8."""
    digest: str
    """The model's and its adapter's, as `ModelCard` has it."""
    disk_bytes: int | None = None
    """As `PrefixRules.disk_bytes`, until that comes."""


class WarmPrompt(msgspec.Struct, frozen=True):
    """A system prompt to be read before anybody asks."""

    name: str
    """Says which, for people."""
    request: GenerationRequest
    """One that begins with it; only that is read."""


class PrefixRules(msgspec.Struct, frozen=True, tag="prefix_rules"):
    """What beginnings of prompts are worth to the operator, from now on."""

    disk_bytes: int | None = None
    """For those of all models on disk; 0: none, and those that are there go; None: by what is
    free."""
    keep: list[str] = []
    """Texts of system prompts, with `*` for any text: these leave last."""
    warm: list[WarmPrompt] | None = None
    """None: as before."""


class Tuning(msgspec.Struct, frozen=True, tag="tuning"):
    """How the engine shares its time between prompts and answers, from now on."""

    stall_seconds: float = 0.1
    """limits.batching.stall_target: of prefill at one time."""
    min_chunk: int = 32
    """limits.batching.min_chunk: tokens that are read at one time, however long they take."""
    decode_share: float = 0.05
    """limits.batching.decode_share: of the time, for running answers, while prompts wait."""
    max_tokens: int = 0
    """limits.tokens.max_batch_tokens: read at one time at most; 0: what memory is counted for."""


class Launch(msgspec.Struct, frozen=True, tag="launch"):
    """Load this model. An engine process is told it once, before anything else but `Ping`."""

    path: str
    """The model's folder."""
    context: int
    adapter: str = ""
    chat_template: str = ""
    trust_remote_code: bool = False
    kv_bits: int = 0
    draft: str = ""
    """The folder of the model that drafts for it; empty: none does."""
    draft_tokens: int = 0
    """Tokens to draft in a step; 0: as many as pay."""
    budget: Budget | None = None
    """Until the first `Budget` comes; None: no limit."""
    turns: bytes = b""
    """The file that exclusive engines lock while they step, as the system names it; empty: none."""
    footprint: Footprint | None = None
    """What the daemon takes the model's to be; None: it knows nothing."""
    measured: bool = False
    """Whether `footprint` is of an earlier load with the same versions: nothing is recorded, nor
    tried out."""
    held: bool = False
    """Grammars have held answers of this model before: what that takes is made with the load, and
    not while others stream."""
    prefixes: PrefixFiles | None = None
    """None: none are kept on disk."""


class Trim(msgspec.Struct, frozen=True, tag="trim"):
    """Free the buffers that are kept for reuse."""


class CacheAsk(msgspec.Struct, frozen=True, tag="cache_ask"):
    """Answered by a `CacheStats`, between two steps."""

    id: int


class CacheClear(msgspec.Struct, frozen=True, tag="cache_clear"):
    """Keep no beginning any more that is kept now; answered by a `CacheStats`."""

    id: int
    disk: bool = False
    """Nor on disk."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Answered at once by a `Pong`, from the IO side."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process, with exit status 0."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first word of a process, which every mlxd understands. Nothing is read before it."""

    protocol: int
    """Its `PROTOCOL`."""


class Warm(msgspec.Struct, frozen=True, tag="warm"):
    """Everything that an engine needs is imported: from here on a load is the model's own."""


Stage = Literal["weights", "adapter", "tokenizer", "first_step", "layout", "footprint"]


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """How far the load is; the first one answers the `Launch`."""

    stage: Stage
    done: int = 0
    """Bytes of the weights' files that have been read."""
    total: int = 0
    """What they have in all."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and may be used."""

    batchable: bool
    """False: requests share no steps; they take turns, a token each."""
    vocabulary: int
    context: int
    load_seconds: float
    """Without the time in which it was not `Warm`."""
    active_bytes: int
    thinking: bool
    tools: bool
    footprint: Footprint
    """As measured from its caches."""
    peak_bytes: int = 0
    """The most that loading held at one time."""
    working_set_bytes: int = 0
    """What the GPU recommends to hold at most; 0: it recommends nothing."""
    answers: bool = True
    """Whether it produces text; else it makes vectors alone."""
    drafts: bool = False
    """Whether another model drafts for it."""
    draft_refused: str = ""
    """Why none does, where one was named."""
    key: str = ""
    """Of what it computes by: files with other contents have another one; empty where it is not
    known.
    """


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model could not be loaded; the process ends. No path of the host is in `reason`."""

    reason: str
    setting: Literal["", "kv_bits"] = ""
    """The setting of the model without which it might be; empty: it is none of these."""


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The request was tokenised, checked and handed to the engine: there is memory for it."""

    id: int
    prompt_tokens: int
    cached_tokens: int = 0
    prompt: bytes = b""
    """The prompt in tokens, packed: what another worker needs to go on with it."""
    received: float = 0.0
    """When the worker had the request: a moment as `clock.stamp` has it, as all are; 0: untold."""
    at: float = 0.0
    """When; 0: untold."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The request cannot run; nothing of it will."""

    id: int
    code: Literal["invalid_request", "context_exceeded", "unsupported", "insufficient_memory"]
    message: str
    param: str | None = None
    policy_key: str | None = None
    """The policy that decided, if one did."""
    needed_bytes: int = 0
    """With insufficient_memory: what it would take, in all."""
    available_bytes: int = 0
    """And what there is for it."""
    numbers: dict[str, int] = {}
    """With context_exceeded: `prompt_tokens` (or `prompt_tokens_at_least`) and `allowed_tokens`;
    `fitting_tokens` of prompt and answer together, where memory is the limit."""


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """One token's log-probability; `top` in falling order."""

    token: str
    raw: bytes
    logprob: float
    top: list[tuple[str, bytes, float]] = []


class Text(msgspec.Struct, frozen=True, array_like=True, tag="t"):
    """A piece of request `id`'s answer."""

    id: int
    text: str
    logprobs: list[Logprob] = []


class Reasoning(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """A piece of request `id`'s thinking."""

    id: int
    text: str
    logprobs: list[Logprob] = []


class Echoed(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """Request `id`'s prompt, told before its answer: a long one's scores in several of these."""

    id: int
    text: str
    """All of it, with the last one."""
    logprobs: list[Logprob] = []
    """Of its first token there is none: NaN."""
    more: bool = False
    """Another one follows."""


class Vector(msgspec.Struct, frozen=True, array_like=True, tag="v"):
    """What request `id`'s prompt means."""

    id: int
    values: bytes
    """float32, the low end first."""


class Call(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """A complete tool call of request `id`."""

    id: int
    name: str
    arguments: dict[str, Any]


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """Request `id` is done. Prefill is from `started` to the first token, decode from there."""

    id: int
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefill_seconds: float
    decode_seconds: float
    stop_string: str | None = None
    reasoning_tokens: int = 0
    malformed_calls: int = 0
    drafted_tokens: int = 0
    """Proposed by the model that drafts for this one."""
    accepted_tokens: int = 0
    """Of them, those that it said itself."""
    at: float = 0.0
    """When; 0: untold."""


class Cancelled(msgspec.Struct, frozen=True, array_like=True, tag="x"):
    """Request `id` was cancelled and holds nothing any more."""

    id: int
    at: float = 0.0
    """When; 0: untold."""


Piece = Text | Reasoning | Echoed | Vector | Call | Ended | Cancelled


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of request `id`'s answer, in order, that were not told before.

    The pieces of this and of earlier messages are all that those tokens and the earlier ones have
    made known: who goes on behind them says nothing twice and leaves nothing out.
    """

    id: int
    tokens: list[int]


class Memory(msgspec.Struct, frozen=True, array_like=True):
    """What the engine holds, in bytes."""

    active: int
    cache: int
    """Freed buffers kept for reuse."""
    peak: int
    """The most of `active` since the engine was last idle."""
    prefix: int = 0
    """Of `active`, what beginnings of prompts take that are kept for later ones."""


class Need(msgspec.Struct, frozen=True, tag="need"):
    """A budget of so many bytes is wanted; answered by a `Budget` with it, or without.

    The answer may take its time: until it comes nothing is refused for want of it, but for a
    request whose `wait_seconds` are over. After an answer without the bytes, and with nothing else
    running, the request that needed them is refused; while it waits, they may be granted yet.
    """

    id: int
    """Of the request that needs it: one that waits, or one that has grown."""
    bytes: int
    spares: bool = False
    """No model is to leave for it; a denial is final."""


class Observed(msgspec.Struct, frozen=True, tag="observed"):
    """A busy time ended: what was foreseen for it, and what it took."""

    predicted_bytes: int
    """Weights included, by the footprint, for the largest batch; 0: for what ran there is no
    prediction to learn from, since a prompt was given up half way."""
    measured_bytes: int
    rows: int
    """Of the largest batch."""
    longest: int
    """Tokens of its longest sequence."""


class Reused(msgspec.Struct, frozen=True, array_like=True):
    """What request `id`'s prefill begins with."""

    id: int
    cached_tokens: int
    """Of its prompt, those that are not computed again."""
    missed: int = -1
    """The first token of the prompt in which the nearest beginning that is kept differs; -1: none
    begins like it, or all that could serve did."""
    missed_turn: int = -1
    """Which of the request's messages that token is in; -1: in none of them, or nobody knows."""


class Output(msgspec.Struct, frozen=True, tag="output", omit_defaults=True):
    """All pieces of one engine step, in order; empty ones are a sign of life, once a second."""

    step: int
    pieces: list[Piece]
    memory: Memory | None = None
    """Sent now and then."""
    started: list[int] = []
    """Requests whose prefill this step began; until then they wait behind others."""
    begun: list[int] = []
    """Requests whose first token this step gave, though its text may not be known yet."""
    taken: list[Taken] = []
    """The answers' tokens, for the case that another worker has to go on with them."""
    reused: list[Reused] = []
    """Of those among `started` that looked for a beginning."""
    started_at: float = 0.0
    """When the prefill of those in `started` began; 0: untold."""
    begun_at: float = 0.0
    """When the first token of those in `begun` was there; 0: untold."""


class CacheStats(msgspec.Struct, frozen=True, tag="cache_stats"):
    """What is kept of earlier prompts. `id` is that of what it answers."""

    id: int
    entries: int = 0
    """Beginnings in memory."""
    bytes: int = 0
    tokens: int = 0
    """Of all of them; what several share counts for each."""
    oldest_seconds: float = 0.0
    """Since the one was used that nobody has used for longest; 0 without any."""
    disk_entries: int = 0
    disk_bytes: int = 0


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to `Ping`."""

    step: int
    running: int
    """Requests in the engine; 0 while it waits for its turn to step (`Budget.exclusive`)."""
    memory: Memory


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """Something that an operator should know and that changes nothing for any request. Nothing of a
    prompt is in it.
    """

    words: str


class Lacks(msgspec.Struct, frozen=True, tag="lacks"):
    """Something that it cannot do for now, and that changes nothing for any request: an operator
    should know for as long as that is so.
    """

    words: str
    """Empty: it can again."""


Down = (
    Launch
    | Generate
    | Cancel
    | Budget
    | Tuning
    | Trim
    | PrefixRules
    | CacheAsk
    | CacheClear
    | Ping
    | Shutdown
)


class Deaf(msgspec.Struct, frozen=True, tag="deaf"):
    """It neither hears nor says anything for up to so long, and is well: something that must be
    made holds Python's lock.
    """

    seconds: float
    """0: it is over."""


LoadUp = Hello | Warm | Loading | Ready | LoadFailed
Up = (
    LoadUp
    | Accepted
    | Refused
    | Output
    | Need
    | Observed
    | CacheStats
    | Noted
    | Lacks
    | Pong
    | Deaf
)

_encoder = msgspec.msgpack.Encoder()
_down: msgspec.msgpack.Decoder[Down] = msgspec.msgpack.Decoder(Down)
_up: msgspec.msgpack.Decoder[Up] = msgspec.msgpack.Decoder(Up)


class BrokenFrame(Exception):
    """The other side does not speak the protocol; the process behind it is not to be trusted."""


class OtherProtocol(BrokenFrame):
    """The other side is of another mlxd; nothing else that it says is understood."""


class Unsendable(Exception):
    """A value that no message carries: an integer over 64 bits, half a surrogate pair."""

    quotes = True
    """That value."""


class TooLong(Unsendable):
    """The other side would take its frame for a broken one."""


def encode(message: Down | Up) -> bytes:
    """One frame: four bytes of length, big end first, then the message. Raises Unsendable."""
    try:
        body = _encoder.encode(message)
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise Unsendable(str(error)) from error
    if len(body) > MAX_FRAME_BYTES:
        raise TooLong(f"{len(body)} bytes, and a message takes at most {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


TOKEN_BYTES = 4
"""Of each id in what `packed` gives."""


def packed(tokens: Iterable[int]) -> bytes:
    """Token ids as four bytes each, the low end first."""
    ids = array("I", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpacked(data: bytes) -> list[int]:
    """What `packed` made. Raises ValueError for a length that is no multiple of four."""
    ids = array("I")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


class FrameReader:
    """Cuts a byte stream into frames; knows nothing of sockets."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def rest(self) -> bytes:
        """The beginning of a frame that is not complete yet."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Add what arrived and return the frames it completes. Raises BrokenFrame."""
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise BrokenFrame(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return frames


def decode_down(frame: bytes) -> Down:
    """Raises BrokenFrame."""
    try:
        return _down.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenFrame(_unfit(error)) from error


def decode_up(frame: bytes) -> Up:
    """Raises BrokenFrame, OtherProtocol."""
    try:
        message = _up.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenFrame(_unfit(error)) from error
    if isinstance(message, Hello) and message.protocol != PROTOCOL:
        raise OtherProtocol(f"it speaks protocol {message.protocol}, and this is {PROTOCOL}")
    return message


_PLACE = re.compile(r" - at `\$[\w.\[\]]*`")


def _unfit(error: Exception) -> str:
    """What is wrong with a frame, and where; what stands there is quoted nowhere."""
    place = _PLACE.search(str(error))
    return f"no message that is known ({type(error).__name__}{place[0] if place else ''})"
