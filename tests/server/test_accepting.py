"""Where there are no files any more, connections are refused and the loop does not spin."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import Any

import pytest

from mlxd.server import accepting
from mlxd.server.accepting import Acceptor


class _Kept(asyncio.Protocol):
    """Ended at once: the client is told nothing, and nothing is left open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Short(socket.socket):
    """Its first `accept` finds no file."""

    short = True

    def accept(self) -> Any:
        if self.short:
            self.short = False
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_somebody_else_may_take_the_last_file_that_was_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the moment in which it was let go for the refusal of one client."""

    def none(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_Short())
        listener.bind(("127.0.0.1", 0))
        acceptor = Acceptor(listener, lambda _: _Kept(), lambda _: b"no room")
        acceptor.start(8)
        clients = [stack.enter_context(socket.socket()) for _ in range(accepting.KEPT_FILES + 3)]
        for client in clients:
            client.connect(listener.getsockname())
        monkeypatch.setattr(os, "open", none)
        acceptor._accept()
        monkeypatch.undo()
        await asyncio.to_thread(clients[accepting.KEPT_FILES - 1].recv, 16)
        acceptor.close()
        await acceptor.settled()


async def test_whoever_is_refused_is_told_so_and_nothing_is_made_of_it() -> None:
    made: list[bool] = []

    def connection(kept: bool) -> asyncio.Protocol:
        made.append(kept)
        return _Kept()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        acceptor = Acceptor(
            listener, connection, refusal=lambda peer: b"too many" if peer == "127.0.0.9" else b""
        )
        acceptor.start(8)
        at = listener.getsockname()
        for source, told in (("127.0.0.9", b"too many"), ("127.0.0.8", b"")):
            with await asyncio.to_thread(socket.create_connection, at, 5, (source, 0)) as client:
                assert await asyncio.to_thread(client.recv, 99) == told
        acceptor.close()
        await acceptor.settled()
    assert made == [False]


async def test_it_counts_whom_it_took_and_how_often_nobody_was_left() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        acceptor = Acceptor(listener, lambda _: _Kept())
        acceptor.start(64)
        clients = [stack.enter_context(socket.socket()) for _ in range(accepting._AT_ONCE + 1)]
        for client in clients:
            client.connect(listener.getsockname())
        counts = []
        for _ in range(2):
            acceptor._accept()
            counts.append((acceptor.taken, acceptor.emptied))
        acceptor.close()
        await acceptor.settled()
    assert counts == [(accepting._AT_ONCE, 0), (accepting._AT_ONCE + 1, 1)]


async def test_one_that_was_reset_before_it_was_taken_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS hands it out all the same, and lets no option of it be set."""
    lost: list[BaseException | None] = []

    class Lost(asyncio.Protocol):
        def connection_lost(self, exc: BaseException | None) -> None:
            lost.append(exc)

    async def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", refused)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        acceptor = Acceptor(listener, lambda _: Lost())
        acceptor.start(8)
        with socket.create_connection(listener.getsockname(), 5) as client:
            assert await asyncio.to_thread(client.recv, 1) == b""
        acceptor.close()
        await acceptor.settled()
    assert [getattr(error, "errno", 0) for error in lost] == [errno.EINVAL]
