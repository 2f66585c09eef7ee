"""Who is measured: the daemon as any client sees it, and mlx-lm's own batches beside it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol, TextIO

from mlxd.bench.client import (
    Api,
    BadAnswer,
    Json,
    TooLate,
    read_answer,
    read_openai_stream,
    request_bytes,
    run_load,
)

Spans = Callable[[Sequence[str]], Sequence[float | None]]
"""By the ids of requests, the seconds between the first and the last token of each, as the engine
counted them; None: that is not known.
"""

_SILENCE_SECONDS = 120.0
_START_SECONDS = 300.0
_END_SECONDS = 5.0
_SHOWN = 600


@dataclass(frozen=True, slots=True)
class Answers:
    """To prompts that were asked at one time."""

    times: Sequence[Sequence[float]]
    """Of each stream, the seconds since all were asked at which its pieces came."""
    spans: Sequence[float]
    """Of each, the seconds from its first token to its last: a piece of text may hold several."""


class Contestant(Protocol):
    """Answers prompts, all at once."""

    def run(self, prompts: Sequence[list[int]], tokens: int, within: float) -> Answers:
        """Raises BadAnswer, also where an answer has another length than `tokens`; TooLate."""
        ...


class Daemon:
    """A running mlxd, by its admin socket at `path`: there it counts towards no client's rates."""

    def __init__(self, path: str, model: str, spans: Spans) -> None:
        self._path = path
        self._model = model
        self._spans = spans

    def run(self, prompts: Sequence[list[int]], tokens: int, within: float) -> Answers:
        ids = [f"bench-{token_hex(8)}" for _ in prompts]
        requests = [
            request_bytes(_API.path, _API.body(self._model, prompt, tokens, True), id)
            for id, prompt in zip(ids, prompts, strict=True)
        ]
        try:
            exchanges = run_load(self._connect, requests, _SILENCE_SECONDS, within=within)
        except OSError as error:
            raise BadAnswer(f"the daemon does not answer: {error}") from error
        answers = [read_answer(exchange, _API, stream=True) for exchange in exchanges]
        if short := [answer.tokens for answer in answers if answer.tokens != tokens]:
            raise BadAnswer(f"an answer has {short[0]} tokens instead of {tokens}")
        times = [answer.times or (answer.ended,) for answer in answers]
        spans = zip(times, self._spans(ids), strict=True)
        seen = [stream[-1] - stream[0] if span is None else span for stream, span in spans]
        return Answers(times, seen)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock


class Raw:
    """mlxd/worker/raw.py with the same weights, in a process of its own. To be closed."""

    def __init__(self, folder: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlxd.worker.raw", str(folder), "--endless"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            start_new_session=True,  # Ctrl-C is for the command, which ends it
        )  # fmt: skip

    def until_ready(self) -> None:
        """Raises BadAnswer where it cannot run the model."""
        self._answer(_START_SECONDS)

    def run(self, prompts: Sequence[list[int]], tokens: int, within: float) -> Answers:
        order = json.dumps({"prompts": [*prompts], "tokens": tokens})
        with contextlib.suppress(BrokenPipeError):  # its end is told below
            print(order, file=self._pipe(self._process.stdin), flush=True)
        times: list[list[float]] = self._answer(within)["times"]
        if short := [len(stream) for stream in times if len(stream) != tokens]:
            raise BadAnswer(f"raw: an answer has {short[0]} tokens instead of {tokens}")
        return Answers(times, [stream[-1] - stream[0] for stream in times])

    def close(self) -> None:
        """End it, however busy it is."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                self._pipe(pipe).close()
        self._errors.close()

    def _answer(self, within: float) -> Json:
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(within, end)
        timer.daemon = True
        timer.start()
        try:
            line = self._pipe(self._process.stdout).readline()
        finally:
            timer.cancel()
        if late.is_set():
            raise TooLate(f"raw: it was not answered within {within:.0f} s")
        if not line:
            self._process.wait(_END_SECONDS)
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()[-_SHOWN:]
            raise BadAnswer(f"raw ended: {said or self._process.returncode}")
        answer: Json = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: Any) -> TextIO:
        assert pipe is not None
        found: TextIO = pipe
        return found


def _body(model: str, prompt: list[int], tokens: int, stream: bool) -> Json:
    """Greedy, and as long as asked for whatever the model says."""
    return {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": stream, "stream_options": {"include_usage": True},
    }  # fmt: skip


def _read_whole(answer: Json) -> int:
    return int(answer["usage"]["completion_tokens"])


_API = Api("/admin/completions", _body, read_openai_stream, _read_whole)
