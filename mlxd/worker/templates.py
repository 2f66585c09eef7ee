"""Chat templates that clients sent, rendered by a process that may be killed (templating.py)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from mlxd.worker.refusal import Refusal

LENGTH = 4
"""Bytes of a frame that say how long it is."""
SECONDS = 2.0
"""What a template may take; whoever asks next with one of their own waits as long."""
MOST_MEMORY = 512 * 2**20
"""Bytes of the process. It limits itself, which macOS does not keep to."""
_LOOK_SECONDS = 0.02
_START_SECONDS = 20.0
_PIECE = 2**16


class Templates:
    """Keeps one process, started with the first template. Used by one thread."""

    def __init__(self, seconds: float = SECONDS, memory: int = MOST_MEMORY) -> None:
        self._seconds = seconds
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """Raises Refusal."""
        question = json.dumps([template, variables]).encode()
        try:
            process = self._running()
            until = time.monotonic() + self._seconds
            self._write(process, question, until)
            answer = json.loads(self._read(process, until))
        except TimeoutError:
            self.close()
            words = f"the template takes more than {self._seconds:g} s to render"
            raise Refusal(words, param="template") from None
        except (OSError, EOFError):
            self.close()
            words = "the template cannot be rendered: it takes too much"
            raise Refusal(words, param="template") from None
        if "error" in answer:
            raise Refusal(f"the template refuses this: {answer['error']}", param="template")
        text: str = answer["text"]
        return text

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(OSError):  # what it did not read
            process.communicate()

    def _running(self) -> subprocess.Popen[bytes]:
        """Raises OSError, EOFError, TimeoutError where none can be had. -P: the folder that the
        daemon was started in is no place to import from.
        """
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlxd.worker.templating"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # it may read none of a piece
        self._read(self._process, time.monotonic() + _START_SECONDS)
        return self._process

    def _write(self, process: subprocess.Popen[bytes], body: bytes, until: float) -> None:
        """One frame. Raises TimeoutError, EOFError."""
        assert process.stdin is not None
        stream = process.stdin.fileno()
        left = memoryview(len(body).to_bytes(LENGTH, "big") + body)
        while left:
            self._wait(process, lambda seconds: select.select([], [stream], [], seconds)[1], until)
            left = left[os.write(stream, left[:_PIECE]) :]

    def _read(self, process: subprocess.Popen[bytes], until: float) -> bytes:
        """One frame. Raises EOFError at the end, TimeoutError."""
        assert process.stdout is not None
        stream = process.stdout.fileno()
        found = bytearray()
        wanted = LENGTH
        while len(found) < wanted:
            self._wait(process, lambda seconds: select.select([stream], [], [], seconds)[0], until)
            piece = os.read(stream, min(_PIECE, wanted - len(found)))
            if not piece:
                raise EOFError
            found += piece
            if len(found) == LENGTH:
                wanted = LENGTH + int.from_bytes(found, "big")
        return bytes(found[LENGTH:])

    def _wait(
        self, process: subprocess.Popen[bytes], ready: Callable[[float], object], until: float
    ) -> None:
        """`ready` waits so many seconds. Raises TimeoutError, and EOFError where the process has
        taken too much memory.
        """
        while not ready(max(0.0, min(_LOOK_SECONDS, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise TimeoutError
            if _resident(process.pid) > self._memory:
                raise EOFError


def _resident(pid: int) -> int:
    """Bytes; 0 where it is gone."""
    import psutil  # few templates take long enough to ask

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (OSError, psutil.Error):
        return 0
