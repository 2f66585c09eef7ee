"""A worker without its process: real models, its threads' work in turn, frames as they are sent."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc.messages import (
    Accepted,
    Call,
    Down,
    Ended,
    Generate,
    Launch,
    Logprob,
    Output,
    Piece,
    Reasoning,
    Refused,
    Resume,
    Shutdown,
    Text,
    Up,
    decode_up,
    encode,
    packed,
)

GREEDY = Sampling(temperature=0.0)


@dataclass
class Heard:
    """What was said about one request, and after each frame what was known."""

    prompt: bytes = b""
    pieces: list[Piece] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    frames: list[tuple[int, int]] = field(default_factory=list)
    """How many pieces and tokens were known, before any frame and after each."""
    started: int = 0
    begun: int = 0
    refused: Refused | None = None

    @property
    def ended(self) -> Ended:
        (ended,) = [piece for piece in self.pieces if isinstance(piece, Ended)]
        return ended


class Bench:
    """Serves what it is asked to the end; then its loop returns."""

    def __init__(self, model: Path, **launch: Any) -> None:
        from mlxd.worker.assembly import assemble
        from mlxd.worker.intake import Intake

        self.wire = _Wire()
        link: Any = self.wire
        self.intake = Intake(link)
        self.intake.inbox = _Inbox()
        self.intake.preparation._inbox = self.intake.inbox
        spec = Launch(path=str(model), context=4096, **launch)
        self.loop, self.ready = assemble(spec, link, self.intake, time.monotonic())
        self._next_id = 1

    def message(self, *, sampling: Sampling = GREEDY, **request: Any) -> Generate:
        self._next_id += 1
        asked = GenerationRequest(model="m", **request)
        return Generate(self._next_id, asked, sampling, 1 << 20, 1 << 20, 1 << 20)

    def run(self, messages: Iterable[Generate]) -> list[Heard]:
        """All of them, in one batch."""
        asked = list(messages)
        for message in asked:
            self.intake.handle(message, 100)
        while self.intake.preparation._queue:
            self.intake.preparation.turn()
        self.wire.sent.clear()
        self.loop.run()
        return [self.wire.heard(message.id) for message in asked]

    def resumed(self, message: Generate, prompt: bytes, tokens: list[int]) -> Generate:
        self._next_id += 1
        return structs.replace(message, id=self._next_id, resume=Resume(prompt, packed(tokens)))


class _Inbox(queue.SimpleQueue[Any]):
    """Tells the loop to end when it would wait for more."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return [Shutdown()] if self.empty() else super().get(block, timeout)


class _Wire:
    def __init__(self) -> None:
        self.sent: list[Up] = []
        self.refused: list[Refused] = []

    def send(self, message: Up | Down) -> None:
        sent = decode_up(encode(message)[4:])
        self.sent.append(sent)
        if isinstance(sent, Refused):
            self.refused.append(sent)

    def heard(self, id: int) -> Heard:
        heard = Heard()
        heard.frames.append((0, 0))
        for refused in self.refused:
            if refused.id == id:
                heard.refused = refused
        for message in self.sent:
            match message:
                case Accepted(id=accepted) if accepted == id:
                    heard.prompt = message.prompt
                case Output():
                    heard.started += message.started.count(id)
                    heard.begun += message.begun.count(id)
                    heard.pieces += [piece for piece in message.pieces if piece.id == id]
                    for taken in message.taken:
                        heard.tokens += taken.tokens if taken.id == id else []
                    heard.frames.append((len(heard.pieces), len(heard.tokens)))
                case _:
                    pass
        return heard


@dataclass
class Answer:
    """What a client gets of pieces."""

    said: list[tuple[str, str]]
    """Text and reasoning, in turn, and calls where they stand."""
    scores: list[Logprob]
    end: tuple[Any, ...]


def answer_of(pieces: Iterable[Piece]) -> Answer:
    answer = Answer([], [], ())
    for piece in pieces:
        match piece:
            case Text() | Reasoning():
                answer.scores += piece.logprobs
                _say(answer.said, type(piece).__name__, piece.text)
            case Call():
                answer.said.append((piece.name, str(piece.arguments)))
            case Ended():
                answer.end = (
                    piece.reason,
                    piece.prompt_tokens,
                    piece.completion_tokens,
                    piece.stop_string,
                )
            case _:
                pass
    return answer


def _say(said: list[tuple[str, str]], kind: str, text: str) -> None:
    if not text:
        return
    if said and said[-1][0] == kind:
        said[-1] = (kind, said[-1][1] + text)
    else:
        said.append((kind, text))
