"""Whom this machine trusts: read for the first https server, and not at every start.

aiohttp reads it twice as it is imported, for a client that most daemons never use: a tenth of what
their start takes.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def unread() -> Iterator[None]:
    """What makes a context meanwhile finds no certificates, and so trusts nobody."""
    with ExitStack() as undo:
        for name in ("load_default_certs", "set_default_verify_paths"):
            undo.callback(setattr, ssl.SSLContext, name, getattr(ssl.SSLContext, name))
            setattr(ssl.SSLContext, name, lambda *_: None)
        yield


def read() -> ssl.SSLContext:
    """As aiohttp's client makes it. It reads the disk: for a thread. Raises OSError."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
