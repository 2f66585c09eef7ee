"""Bodies that are meant to cost much (F18): each is refused in its API's own words, at once, within
three times a body's memory.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.support.bombs import GIB, gzip_bomb, packed, zstd_bomb, zstd_window
from tests.support.daemon import Daemon, daemon
from tests.support.long import in_turn
from tests.support.pace import slowness
from tests.support.peak import KNOWN, forget, most
from tests.support.refusals import PATHS, words_of
from tests.support.smuggling import Answer, answers_in

pytestmark = pytest.mark.skipif(not KNOWN, reason="this system tells no peak of memory")

MAX_BODY = 8 * 2**20
AT_ONCE_SECONDS = 0.05
HALF = b"x" * (MAX_BODY // 2 - 64)
Pieces = Iterable[bytes]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without models: none of this gets that far."""
    with daemon(tmp_path_factory.mktemp("bare")) as running:
        yield running


def chunked(pieces: Pieces) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def post(daemon: Daemon, path: str, pieces: Pieces, *headers: str) -> tuple[Answer, float]:
    """The answer, and the seconds of a core since the last was sent; whoever is refused sends no
    more.
    """
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", *headers]
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as sock:
        sock.sendall("\r\n".join([*head, "", ""]).encode())
        sock.setblocking(False)
        received = b""
        for piece in chunked(pieces):
            with contextlib.suppress(OSError):
                received += sock.recv(65536)
            if received or not _sent(sock, piece):
                break
        before = spent(daemon.pid)
        sock.settimeout(30)
        while (answer := _whole(received)) is None:
            received += sock.recv(65536)
    return answer, spent(daemon.pid) - before


def spent(pid: int) -> float:
    """Seconds of a core, as finely as the system tells them: clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def _whole(received: bytes) -> Answer | None:
    with contextlib.suppress(AssertionError, IndexError):
        answer = answers_in(received)[0]
        return answer if answer.body else None
    return None


def _sent(sock: socket.socket, piece: bytes) -> bool:
    sock.settimeout(30)
    try:
        sock.sendall(piece)
    except ConnectionError:
        return False
    finally:
        sock.setblocking(False)
    return True


def check(daemon: Daemon, path: str, made: Callable[[], Pieces], status: int, *headers: str) -> str:
    """What it says. What else the daemon has to do may spoil one look, not each of three."""
    seconds = AT_ONCE_SECONDS * 2 * slowness()
    took, grown = 0.0, 0
    for _ in range(3):
        before = forget(daemon.pid)
        answer, took = post(daemon, path, made(), *headers)
        assert answer.status == status, answer
        grown = most(daemon.pid) - before
        words = words_of(path, answer)
        if took < seconds and grown < 3 * MAX_BODY:
            return words
    raise AssertionError(f"it took {took:.3f} s and {grown} bytes")


def _empty_blocks() -> Iterator[bytes]:
    yield packed("gzip", b"")[:10]
    for _ in range(400):
        yield b"\x00\x00\x00\xff\xff" * 5000


BOMBS: dict[str, tuple[str, Callable[[], Pieces], int]] = {
    "gzip": ("gzip", lambda: gzip_bomb(10 * GIB), 413),
    "zstd": ("zstd", lambda: zstd_bomb(10 * GIB), 413),
    "deflate": ("deflate", lambda: [packed("deflate", b" " * (4 * MAX_BODY))], 413),
    "gzip within gzip": ("gzip", lambda: [packed("gzip", b"".join(_some(gzip_bomb)))], 400),
    "zstd within zstd": ("zstd", lambda: [packed("zstd", b"".join(_some(zstd_bomb)))], 400),
    "gzip twice": ("gzip, gzip", lambda: [packed("gzip", packed("gzip", b"{}"))], 415),
    "many members of gzip": ("gzip", lambda: [packed("gzip", b"")] * 1000, 400),
    "many frames of zstd": ("zstd", lambda: [packed("zstd", b"") * 100] * 1000, 400),
    "cut gzip": ("gzip", lambda: [packed("gzip", b"{}")[:-1]], 400),
    "cut zstd": ("zstd", lambda: [packed("zstd", b"{}")[:-1]], 400),
    "a word behind gzip": ("gzip", lambda: [packed("gzip", b"{}") + b"x"], 400),
    "a word behind zstd": ("zstd", lambda: [packed("zstd", b"{}") + b"x"], 400),
    "a large window": ("zstd", lambda: [zstd_window(27)], 400),
    "empty blocks without end": ("gzip", _empty_blocks, 413),
    "brotli": ("br", lambda: [b"\x0b\x00\x80{}\x03"], 415),
}


def _some(bomb: Callable[[int], Iterator[bytes]]) -> Iterator[bytes]:
    return bomb(GIB)


@pytest.mark.parametrize(("name", "path"), in_turn(BOMBS, PATHS))
def test_a_compressed_bomb(bare: Daemon, path: str, name: str) -> None:
    encoding, made, status = BOMBS[name]
    words = check(bare, path, made, status, f"Content-Encoding: {encoding}")
    assert status != 413 or "server.http.max_body" in words


JSON: dict[str, bytes] = {
    "deep lists": b'{"x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "deep objects": b'{"a":' * (MAX_BODY // 5 - 10),
    "a level too many": b'{"x": ' + b"[" * 64 + b"]" * 64 + b"}",
    "open lists": b"[" * MAX_BODY,
    "many lists": b'{"x": [' + b"[]," * (MAX_BODY // 3 - 10) + b"0]}",
    "many objects": b'{"x": [' + b'{"a":1},' * (MAX_BODY // 8 - 10) + b"0]}",
    "many numbers": b'{"x": [' + b"1," * (MAX_BODY // 2 - 10) + b"0]}",
    "many strings": b'{"x": [' + b'"",' * (MAX_BODY // 3 - 10) + b'""]}',
    "a long string": b'{"x": "' + b"y" * (MAX_BODY - 20) + b'"}',
    "a long key": b'{"' + b"y" * (MAX_BODY - 20) + b'": 1}',
    "long backslashes": b'{"x": "' + b"\\" * (MAX_BODY - 20) + b'"}',
    "escapes": b'{"x": "' + b"\\u0041" * (MAX_BODY // 6 - 10) + b'"}',
    "two long strings, broken": b'{"a": "' + HALF + b'", "b": "' + HALF + b'"',
    "digits": b'{"x": ' + b"9" * (MAX_BODY - 20) + b"}",
    "digits behind a point": b'{"x": 0.' + b"9" * (MAX_BODY - 20) + b"}",
    "a digit too many": b'{"x": ' + b"9" * 101 + b"}",
    "an exponent": b'{"x": 1e999999999}',
    "a key twice": b'{"x": {"a": 1, "a": 2}}',
    "a key twice, once in escapes": b'{"a": 1, "\\u0061": 2}',
    "NaN": b'{"x": NaN}',
    "Infinity": b'{"x": -Infinity}',
    "a lone surrogate": b'{"x": "\\ud800"}',
    "surrogates in the wrong order": b'{"x": "\\udc00\\ud800"}',
    "a surrogate in UTF-8": b'{"x": "\xed\xa0\x80"}',
    "no UTF-8": b'{"x": "\xff"}',
    "UTF-16": '{"x": 1}'.encode("utf-16"),
    "UTF-32": '{"x": 1}'.encode("utf-32"),
    "two marks of UTF-8": b"\xef\xbb\xbf\xef\xbb\xbf{}",
    "a mark alone": b"\xef\xbb\xbf",
    "NULs": bytes(MAX_BODY),
    "blanks": b" " * MAX_BODY,
    "quotes": b'"' * MAX_BODY,
    "a list": b"[]",
    "two values": b"{}{}",
}


def test_what_was_refused_is_not_kept(bare: Daemon) -> None:
    """Errors hold the frames that they came through, and those a body."""
    post(bare, PATHS[0], [JSON["a list"]])
    before = forget(bare.pid)
    for name in ("a long string", "many numbers", "open lists") * 8:
        assert post(bare, PATHS[0], [JSON[name]])[0].status == 400
    assert most(bare.pid) - before < 3 * MAX_BODY


INTERNALS = ("msgspec", "recursion", "codec", "Traceback", ".py", "aiohttp", "b'")


@pytest.mark.parametrize(("name", "path"), in_turn(JSON, PATHS))
def test_a_bomb_of_json(bare: Daemon, path: str, name: str) -> None:
    words = check(bare, path, lambda: [JSON[name]], 400)
    for internal in INTERNALS:
        assert internal not in words
