"""A real worker process, driven over its socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc.messages import (
    Accepted,
    Call,
    Cancelled,
    Down,
    Echoed,
    Ended,
    FrameReader,
    Generate,
    Launch,
    LoadFailed,
    Loading,
    Memory,
    Need,
    Observed,
    Output,
    Pong,
    Ready,
    Reasoning,
    Refused,
    Text,
    Up,
    Vector,
    Warm,
    decode_up,
    encode,
)

GREEDY = Sampling(temperature=0.0)


class Told:
    """Everything a worker said about one request."""

    def __init__(self) -> None:
        self.accepted: Accepted | None = None
        self.refused: Refused | None = None
        self.ended: Ended | None = None
        self.started = 0
        self.cancelled = False
        self.pieces: list[Text | Reasoning | Echoed | Vector | Call] = []

    @property
    def over(self) -> bool:
        return self.cancelled or self.refused is not None or self.ended is not None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Text))

    @property
    def reasoning(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Reasoning))

    @property
    def calls(self) -> list[Call]:
        return [piece for piece in self.pieces if isinstance(piece, Call)]

    @property
    def logprobs(self) -> list[Any]:
        return [
            entry
            for piece in self.pieces
            if not isinstance(piece, Call | Vector)
            for entry in piece.logprobs
        ]


class WorkerProcess:
    """Spawns `python -m mlxd.worker`; `first` is its Ready or LoadFailed."""

    def __init__(
        self, model: Path | None, *, context: int = 4096, wait: bool = True, **more: Any
    ) -> None:
        """`more` of its `Launch`. Without a model it is a spare."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "mlxd.worker", "--fd", str(theirs.fileno())]
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                env=dict(os.environ),
                start_new_session=True,
            )
        ours.settimeout(50)
        self.socket = ours
        self.told: dict[int, Told] = defaultdict(Told)
        self.outputs = 0
        self.pongs: list[Pong] = []
        self.needs: list[Need] = []
        self.observed: list[Observed] = []
        self.memories: list[Memory] = []
        self.loading: list[Loading] = []
        self._first: Up | None = None
        self._reader = FrameReader()
        self._next_id = 1
        self.warm = False
        if model is not None:
            self.launch(model, context=context, wait=wait, **more)
        elif wait:
            self.until(lambda: self.warm)

    def launch(self, model: Path, *, context: int, wait: bool = True, **more: Any) -> None:
        self.send(Launch(path=str(model), context=context, **more))
        if wait:
            self.until(lambda: self._first is not None)

    @property
    def first(self) -> Up:
        assert self._first is not None
        return self._first

    def send(self, *messages: Down) -> None:
        self.socket.sendall(b"".join(encode(message) for message in messages))

    def receive(self) -> list[Up]:
        """Waits for one message at least. Raises EOFError when the worker is gone."""
        while True:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            messages = [decode_up(frame) for frame in self._reader.feed(data)]
            for message in messages:
                self._note(message)
            if messages:
                return messages

    def until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            self.receive()

    def generate(
        self,
        *,
        sampling: Sampling = GREEDY,
        max_prompt: int = 1 << 20,
        max_output: int = 1 << 20,
        context: int = 1 << 20,
        expected_output: int = 1024,
        wait_seconds: float = 300.0,
        context_key: str = "",
        **request: Any,
    ) -> int:
        """Send one request and return its id."""
        id = self._next_id
        self._next_id += 1
        message = self.message(id, sampling, max_prompt, max_output, context, **request)
        reserve = {"expected_output": expected_output, "wait_seconds": wait_seconds}
        self.send(structs.replace(message, **reserve, context_key=context_key))
        return id

    def message(
        self,
        id: int,
        sampling: Sampling = GREEDY,
        max_prompt: int = 1 << 20,
        max_output: int = 1 << 20,
        context: int = 1 << 20,
        **request: Any,
    ) -> Generate:
        asked = GenerationRequest(model="m", **request)
        return Generate(id, asked, sampling, max_prompt, max_output, context)

    def run(self, **request: Any) -> Told:
        """One request, to its end."""
        told = self.told[self.generate(**request)]
        self.until(lambda: told.over)
        return told

    def close(self) -> None:
        self.socket.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _note(self, message: Up) -> None:
        match message:
            case Warm():
                self.warm = True
            case Ready() | LoadFailed():
                self._first = message
            case Loading():
                self.loading.append(message)
            case Accepted():
                self.told[message.id].accepted = message
            case Refused():
                self.told[message.id].refused = message
            case Pong():
                self.pongs.append(message)
            case Need():
                self.needs.append(message)
            case Observed():
                self.observed.append(message)
            case Output():
                self.outputs += 1
                if message.memory is not None:
                    self.memories.append(message.memory)
                for id in message.started:
                    self.told[id].started += 1
                for piece in message.pieces:
                    told = self.told[piece.id]
                    match piece:
                        case Ended():
                            told.ended = piece
                        case Cancelled():
                            told.cancelled = True
                        case _:
                            told.pieces.append(piece)
            case _:
                pass
