"""What a connection is told that ends before there is a request, and how that is told of.

It is as explained as every other refusal. A flood of them stays cheap: what is the same for all is
made once for each generation of policies, and of what is alike three a second are in the log one by
one, the others as one line behind them. Events are bounded in the same way (Rejections).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus

from mlxd.core.counts import form
from mlxd.core.errors import MlxdError, Overloaded, RequestTimeout
from mlxd.core.lines import one_line
from mlxd.dialects.base import to_json
from mlxd.policy.policy_set import PolicySet
from mlxd.server.addresses import AUTO
from mlxd.server.errors import (
    STATUS,
    Render,
    error_body,
    error_headers,
    identity,
    in_ollama,
    new_request_id,
)
from mlxd.telemetry.rejections import Rejections

_access = logging.getLogger("mlxd.access")

EACH = 3
"""Of what is alike, that are logged one by one in `_SECONDS`."""
_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_ID = b"\0"
"""Where the id goes: no header has one of these."""

Reason = Callable[[PolicySet], MlxdError]


class Farewells:
    """Of one server."""

    def __init__(self) -> None:
        self.rejections: Rejections | None = None
        """Told of those whom mlxd would have served at another time."""
        self._made: dict[Reason, tuple[PolicySet, MlxdError, bytes, bytes]] = {}
        """Without the ids: of policies, the error, head and body."""
        self._told: Counter[str] = Counter()
        """Lines of the log, and how often each was to be written since the timer began."""
        self._timer: asyncio.TimerHandle | None = None

    def common(self, reason: Reason, policies: PolicySet, client: str) -> bytes:
        """The words for one of many: they differ by their ids alone."""
        made = self._made.get(reason)
        if made is None or made[0] is not policies:
            error = reason(policies)
            head, body = _answer(error, policies, in_ollama, _ID.decode())
            made = self._made[reason] = policies, error, head, body
        _, error, head, body = made
        request_id = new_request_id()
        self._note(error, client, request_id)
        return head.replace(_ID, request_id.encode()) + body

    def own(self, error: MlxdError, policies: PolicySet, render: Render, client: str) -> bytes:
        """The words for one whose API is known."""
        request_id = new_request_id()
        self._note(error, client, request_id)
        return b"".join(_answer(error, policies, render, request_id))

    def log(self, words: str, request_id: str) -> None:
        """A line of the access log, or one more like those that are there."""
        self._told[words] += 1
        if self._told[words] <= EACH:
            _access.info(words, extra={"request": request_id})
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self.close)

    def close(self) -> None:
        """Log at once what is still to be logged."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for words, count in self._told.items():
            if count > EACH:
                _access.info("%s, and %d more like it", words, count - EACH)
        self._told.clear()

    def _note(self, error: MlxdError, client: str, request_id: str) -> None:
        status, line = STATUS[error.code], error.policy
        why = f" ({line.key})" if line is not None else ""
        self.log(f"a connection {status}{why}", request_id)
        if self.rejections is not None and isinstance(error, Overloaded):
            self.rejections.add(error, status, model="", client=client)


def _answer(
    error: MlxdError, policies: PolicySet, render: Render, request_id: str
) -> tuple[bytes, bytes]:
    """Head and body of a whole answer."""
    body = to_json(error_body(error, render, request_id))
    headers = {
        **identity(request_id),
        **{name: one_line(value) for name, value in error_headers(error).items()},
        "X-Mlxd-Policy": str(policies.generation),
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    status = HTTPStatus(STATUS[error.code])
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode(), body


def too_many(policies: PolicySet) -> MlxdError:
    """Connections, of everybody."""
    most = policies.server.http.max_connections
    return Overloaded(
        f"too many connections: {most} {form(most, 'is', 'are')} open, and none of them gives way",
        retry_after=_RETRY_SECONDS,
        policy=policies.line("server.http.max_connections"),
        numbers={"max": most},
        would_pass="the same request once another connection has ended",
    )


def too_many_of_one(policies: PolicySet) -> MlxdError:
    """Connections of one address."""
    most = policies.server.http.per_ip
    most = AUTO if most == "auto" else most
    return Overloaded(
        f"too many connections of one address: {most} {form(most, 'is', 'are')} open",
        retry_after=_RETRY_SECONDS,
        policy=policies.line("server.http.per_ip"),
        numbers={"max": most},
        would_pass="the same request once another connection of this address has ended",
    )


def no_file(policies: PolicySet) -> MlxdError:
    """No policy decides how many files there may be."""
    return Overloaded(
        "the daemon has too many files open",
        retry_after=_RETRY_SECONDS,
        would_pass="the same request once other connections have ended",
    )


def too_slow(policies: PolicySet, *, scarce: bool) -> MlxdError:
    """The header; `scarce`: it had hardly any time for want of files, whatever policy says."""
    line = policies.line("server.http.header_timeout")
    return RequestTimeout(
        "the request's header came too slowly" + (", and files are scarce" if scarce else ""),
        policy=None if scarce else line,
        numbers=None if scarce else {"limit": line.value},
        would_pass="a header that comes faster",
    )


def gives_way(policies: PolicySet, what: str) -> RequestTimeout:
    """`what` of a request is not whole, to whoever waits to connect."""
    return RequestTimeout(
        f"the request's {what} came too slowly, and others wait to connect",
        policy=policies.line("server.http.max_connections"),
        would_pass=f"a {what} that comes faster, or the same one at another time",
    )
