"""A client whose connection is cut, wherever a test wants it."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping
from typing import Any

from tests.support.daemon import Daemon

Json = dict[str, Any]
_PATIENCE = 60.0
_VARYING = re.compile(
    rb'"(created|created_at|completed_at|cached_tokens|cache_read_input_tokens)":\d+'
)


class Cut:
    """One POST, read as far as the test wants."""

    def __init__(
        self,
        daemon: Daemon,
        path: str,
        body: Json,
        headers: Mapping[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> None:
        """`source`: the address that it comes from."""
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", daemon.port, timeout=_PATIENCE, source_address=(source, 0)
        )
        content = json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        self._connection.request("POST", path, content, sent)
        self.taken = b""

    def answer(self) -> None:
        """Wait for its status line."""
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = self._response.headers

    def read(self, size: int) -> None:
        """Until `size` bytes of the answer are there."""
        self.answer()
        while len(self.taken) < size:
            piece = self._response.read(size - len(self.taken))
            assert piece, "it has ended"
            self.taken += piece

    def read_text(self, letters: int) -> None:
        """Until so many letters are there, in however many events they come."""
        self.answer()
        events = 0
        while True:
            if self.taken.count(b"\n\n") > events:
                events = self.taken.count(b"\n\n")
                if letters_of(self.events) >= letters:
                    return
            piece = self._response.read(32)
            assert piece, "it has ended"
            self.taken += piece

    def rest(self) -> bytes:
        if not hasattr(self, "status"):
            self.answer()
        self.taken += self._response.read()
        self._connection.close()
        return self.taken

    def hang_up(self, *, reset: bool = False) -> None:
        sock = self._connection.sock
        assert sock is not None
        if reset:
            linger = (1).to_bytes(4, "little") + bytes(4)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._connection.close()
        if hasattr(self, "_response"):
            self._response.close()

    @property
    def events(self) -> bytes:
        """What it has read of whole events."""
        return self.taken[: self.taken.rfind(b"\n\n") + 2] if b"\n\n" in self.taken else b""

    @property
    def last_id(self) -> str:
        """Of the last of those; empty: it has none."""
        ids = re.findall(rb"\nid: (\S+)\n\n", self.events)
        return ids[-1].decode() if ids else ""


def letters_of(stream: bytes) -> int:
    return sum(len(text) for _, text in alike(stream))


def alike(stream: bytes) -> list[tuple[Json | str, str]]:
    """What a client makes of it, to be compared with another answer of the same: each event and its
    text, without ids and times. Texts that follow each other are one: where a client is slow, they
    may have come as one.
    """
    told: list[tuple[Json | str, str]] = []
    for number, block in enumerate(stream.split(b"\n\n")[:-1], start=1):
        *_, data, id = block.split(b"\n")
        call, _, digits = id.removeprefix(b"id: ").rpartition(b"-")
        assert int(digits) == number, "one is missing, or told twice"
        data = _VARYING.sub(rb'"\1":0', data.removeprefix(b"data: ").replace(call, b"CALL"))
        if data == b"[DONE]":
            told.append(("[DONE]", ""))
            continue
        event = json.loads(data)
        text = _text_out_of(event)
        if told and text and told[-1][0] == event:
            text = told.pop()[1] + text
        told.append((event, text))
    return told


def _text_out_of(event: Json) -> str:
    """Its delta, which is taken out of it."""
    event.pop("sequence_number", None)
    holders = [event, event.get("delta")]
    for choice in event.get("choices", ()):
        holders += [choice, choice.get("delta")]
    for holder in holders:
        for key in ("content", "text", "delta"):
            if isinstance(holder, dict) and isinstance(holder.get(key), str):
                return str(holder.pop(key))
    return ""
