"""Around every request: its id, the Host and Origin walls, its one log line, and the one place
where an exception becomes an answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Protocol

from aiohttp import web

from mlxd.core.caller import Caller
from mlxd.core.errors import (
    AFTER_DRAIN,
    Draining,
    Forbidden,
    HeadersTooLarge,
    InsufficientMemory,
    InternalError,
    MlxdError,
    Overloaded,
    TooManyGuesses,
    Unauthorized,
)
from mlxd.core.story import Story
from mlxd.policy.load import PolicySet
from mlxd.server.connections import Connection
from mlxd.server.errors import (
    STATUS,
    Render,
    error_response,
    given_id,
    identity,
    new_request_id,
    words_for,
)
from mlxd.server.identity import OPEN, Identity, address_of
from mlxd.server.parts import Parts

log = logging.getLogger("mlxd.access")
faults = logging.getLogger(__name__)

_REMEMBERED = 256
"""Hosts that have been judged: the same ones ask again and again."""
_LEFT = 499
"""What stands for the status where the client has gone."""
_RESTART_SECONDS = 5.0
"""What a client is told to wait for the next daemon."""
_BETWEEN = len(": \r\n")
OWN_NAMES = "own-names"
LOOPBACK_ADDRESSES = "loopback-addresses"
PRIVATE_ADDRESSES = "private-addresses"
_EXPOSED = (
    "X-Request-Id, Request-Id, Retry-After, retry-after-ms, RateLimit, RateLimit-Policy,"
    " X-Mlxd-Code, X-Mlxd-Policy, X-Mlxd-Policy-Key, X-Mlxd-Policy-Place, X-Mlxd-Would-Deny,"
    " X-Mlxd-Needed-Bytes, X-Mlxd-Available-Bytes, X-Mlxd-Priority, X-Mlxd-Free-Slots,"
    " X-Mlxd-Expected-Wait, X-Mlxd-Queue-Position, X-Should-Retry,"
    " x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    " x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens,"
    " anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining,"
    " anthropic-ratelimit-requests-reset, anthropic-ratelimit-tokens-limit,"
    " anthropic-ratelimit-tokens-remaining, anthropic-ratelimit-tokens-reset"
)
_ALLOWED_HEADERS = (
    "Authorization, Content-Type, User-Agent, Accept, X-Requested-With, OpenAI-Beta, x-api-key,"
    " anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access, X-Request-Id,"
    " X-Request-Priority,"
    " traceparent, x-stainless-arch, x-stainless-async, x-stainless-custom-poll-interval,"
    " x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version,"
    " x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime,"
    " x-stainless-runtime-version, x-stainless-timeout, x-stainless-helper, Last-Event-ID,"
    " Idempotency-Key, OpenAI-Organization, OpenAI-Project, tracestate"
)
_LONGEST_WISH = 2048
_NAMES_OF_HEADERS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]+")
_KEYS = "/api/user/keys/"


class Endpoint(Protocol):
    """A handler, and how its API words an error."""

    render_error: Render

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse: ...


class Begun(Protocol):
    """A stream that may have its status line out already."""

    @property
    def begun(self) -> bool: ...

    async def fail(self, error: MlxdError) -> web.StreamResponse: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """What a request ended with, and how its API says that."""

    error: MlxdError
    render: Render


class Marks:
    """The rules on trial that would have refused a request; each is counted when it is met."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self.rules: list[str] = []

    def add(self, rule: str) -> None:
        self.rules.append(rule)
        self._count(rule)


Route = Callable[[web.BaseRequest], Endpoint]
Refused = Callable[[web.BaseRequest, web.StreamResponse], None]

ID = web.RequestKey("id", str)
POLICIES = web.RequestKey("policies", PolicySet)
MARKS = web.RequestKey("marks", Marks)
CALLER = web.RequestKey("caller", Caller)
STORY = web.RequestKey("story", Story)
MODEL = web.RequestKey("model", str)
"""As the client named it; for the log."""
ORIGIN = web.RequestKey("origin", str)
"""Of a page that may read the answer."""
QUOTA: web.RequestKey[dict[str, str]] = web.RequestKey("quota", dict)
"""Headers that say what the client has left."""
FAILURE = web.RequestKey("failure", Failure)
"""Why it was refused."""
BODY = web.RequestKey("body", bytes)
"""If it is short."""
STREAM = web.RequestKey("stream", Begun)
"""The answer, once it is a stream: it says itself how it fails."""


class Edge:
    """Wraps the routes; aiohttp calls it for every request.

    A request is served under one generation of policies, from its first wall to its last token:
    the one that is in force when it comes (`policies_of`).
    """

    def __init__(
        self,
        parts: Parts,
        route: Route,
        *,
        walls: bool = True,
        callers: Identity | None = None,
        refused: Refused | None = None,
    ) -> None:
        """`callers` says who asks; without it, nobody needs a key. `refused` is told of each
        request that was, and of its answer.
        """
        self._parts = parts
        self._route = route
        self._walls = walls
        self._callers = callers
        self._refused = refused

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        request[ID] = _request_id(request)
        request[POLICIES] = self._parts.policies.current
        request[MARKS] = Marks(self._parts.metrics.would_deny)
        if self._parts.state.draining and isinstance(request.protocol, Connection):
            request.protocol.leaving = True
        request[CALLER] = Caller(address_of(request, policies_of(request)))
        began = self._parts.clock.monotonic()
        request[STORY] = self._story(request, began)
        status = _LEFT
        try:
            response = await self._answer(request)
            if not response.prepared:
                response.headers.update(common_headers(request))
                if self._refused is not None and FAILURE in request:
                    self._refused(request, response)
            status = response.status
            return response
        finally:
            self._end(request, status)
            log.info(
                "%s %s %s",
                request.method,
                _path_of(request),
                status,
                extra={
                    "request": request[ID],
                    "seconds": round(self._parts.clock.monotonic() - began, 4),
                    "model": request.get(MODEL, ""),
                    "tenant": caller_of(request).tenant,
                    "key": caller_of(request).key,
                },
            )

    def _story(self, request: web.BaseRequest, began: float) -> Story:
        clock = self._parts.clock
        generation = policies_of(request).generation
        return Story(
            request[ID], request.path, caller_of(request), generation,
            clock.wall(), clock.monotonic, began,
        )  # fmt: skip

    def _end(self, request: web.BaseRequest, status: int) -> None:
        """Of its story, if it has one."""
        story = request[STORY]
        for rule in request[MARKS].rules:
            story.note("would_deny", rule=rule)
        if status == _LEFT:
            story.note("left")
        self._parts.stories.end(story, status, story.code)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The one edge: whatever went wrong behind it becomes an answer here."""
        render: Render = words_for(request)
        try:
            if self._walls:
                _check_room(request)
                self._check_headers(request)
                self._check_origin(request)
                self._check_host(request)
            if request.method == "OPTIONS":
                return _preflight(request)
            self._identify(request)
            endpoint = self._route(request)
            render = endpoint.render_error
            return await endpoint(request)
        except MlxdError as error:
            return await _failed(request, error, render)
        except asyncio.CancelledError:
            if not self._given_up():
                raise
            return await _failed(request, _stopping(policies_of(request)), render)
        except ConnectionError:
            raise
        except MemoryError:
            return await _failed(request, self._out_of_memory(request), render)
        except Exception:  # noqa: BLE001 - the one edge that answers for everything behind it
            faults.exception("request %s: a defect", request[ID])
            defect = InternalError("an internal error occurred; the log has it under this id")
            return await _failed(request, defect, render)

    def _identify(self, request: web.BaseRequest) -> None:
        """Raises Unauthorized, TooManyGuesses."""
        if self._callers is None:
            return
        now = self._parts.clock.monotonic()
        try:
            caller = self._callers.identify(request, policies_of(request), now)
        except (Unauthorized, TooManyGuesses) as error:
            self._parts.rejections.add(
                error, STATUS[error.code], model="", client=client_of(request)
            )
            raise
        request[CALLER] = request[STORY].caller = caller

    def _given_up(self) -> bool:
        """Whether what the request waited for was cancelled, and not the request itself."""
        task = asyncio.current_task()
        return self._parts.admission.draining and task is not None and not task.cancelling()

    def _out_of_memory(self, request: web.BaseRequest) -> InsufficientMemory:
        """This process's own: the engines have theirs."""
        self._parts.guard.emergency("the daemon found no memory for a request")
        interval = float(policies_of(request).memory.check_interval)
        return InsufficientMemory(
            "there is no memory for this request now",
            retry_after=interval,
            would_pass="the same request once other processes have given memory back",
        )

    def _check_headers(self, request: web.BaseRequest) -> None:
        """The sum; aiohttp bounds how many there are and how long each is."""
        policies = policies_of(request)
        limit = int(policies.server.http.max_header_bytes)
        size = sum(len(name) + len(value) + _BETWEEN for name, value in request.raw_headers)
        if size > limit:
            raise HeadersTooLarge(
                f"the request's headers are larger than {limit} bytes",
                policy=policies.line("server.http.max_header_bytes"),
                numbers={"header_bytes": size, "allowed_bytes": limit},
                would_pass=f"headers of at most {limit} bytes together",
            )

    def _check_host(self, request: web.BaseRequest) -> None:
        """Against DNS rebinding; only where the listener is bound to loopback."""
        policies = policies_of(request)
        hosts = policies.clients.hosts
        if not policies.server.listen.loopback or hosts.mode == "off":
            return
        host = _host_of(request.headers.get("Host", ""))
        if _host_allowed(host, hosts.allow):
            return
        if hosts.mode == "dry_run":
            request[MARKS].add("hosts")
            return
        raise Forbidden(
            f"the Host {host[:80]!r} is not allowed",
            policy=policies.line("clients.hosts.allow"),
            would_pass="a Host that is allowed there, such as localhost",
        )

    def _check_origin(self, request: web.BaseRequest) -> None:
        """A page of a foreign origin may not use the API, whatever method it tries."""
        origin = request.headers.get("Origin")
        if origin is None:
            return
        policies = policies_of(request)
        cors = policies.clients.cors
        same = {f"{scheme}://{request.headers.get('Host', '')}" for scheme in ("http", "https")}
        allowed = origin in same or origin_allowed(origin, cors.allow_origins)
        if allowed or cors.mode != "enforce":
            request[ORIGIN] = origin
            if not allowed and cors.mode == "dry_run":
                request[MARKS].add("cors")
            return
        raise Forbidden(
            f"the Origin {origin[:80]!r} is not allowed",
            policy=policies.line("clients.cors.allow_origins"),
            would_pass="a page of an origin that is allowed there, or a client that is no browser",
        )


def _check_room(request: web.BaseRequest) -> None:
    """Raises Overloaded for what cannot be served with the few files that are left."""
    protocol = request.protocol
    if isinstance(protocol, Connection) and protocol.scarce and request.path not in OPEN:
        raise Overloaded(
            "the daemon has too many files open",
            retry_after=1.0,
            would_pass="the same request once other connections have ended",
        )


def _stopping(policies: PolicySet) -> Draining:
    """What those are told who were cut off."""
    return Draining(
        "the daemon is stopping",
        retry_after=_RESTART_SECONDS,
        policy=policies.line("server.drain.grace"),
        numbers={"grace_seconds": float(policies.server.drain.grace)},
        would_pass=AFTER_DRAIN,
    )


def policies_of(request: web.BaseRequest) -> PolicySet:
    """The one generation that a request is served under."""
    return request[POLICIES]


def common_headers(request: web.BaseRequest) -> dict[str, str]:
    """On every answer."""
    headers = identity(request[ID]) | {"X-Mlxd-Policy": str(policies_of(request).generation)}
    headers |= request.get(QUOTA, {})
    if rules := request[MARKS].rules:
        headers["X-Mlxd-Would-Deny"] = ", ".join(rules)
    if isinstance(request.protocol, Connection) and request.protocol.leaving:
        headers["Connection"] = "close"
    if ORIGIN in request:
        headers["Access-Control-Allow-Origin"] = request[ORIGIN]
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        headers["Vary"] = "Origin"
    return headers


def caller_of(request: web.BaseRequest) -> Caller:
    """Who asks."""
    return request[CALLER]


def client_of(request: web.BaseRequest) -> str:
    """Whose share a request takes, and whose belongings it may touch."""
    return caller_of(request).name


def host_allowed(host: str, patterns: Sequence[str]) -> bool:
    """`host` is in lower case and without its port; none at all is allowed (HTTP/1.0)."""
    if not host:
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return any(fnmatchcase(host, pattern.lower()) for pattern in patterns) or (
            OWN_NAMES in patterns and host in _own_names()
        )
    local = address.is_loopback or address.is_unspecified
    private = address.is_private or address.is_link_local
    return (
        (LOOPBACK_ADDRESSES in patterns and local)
        or (PRIVATE_ADDRESSES in patterns and private)
        or str(address) in patterns
    )


_host_allowed = lru_cache(_REMEMBERED)(host_allowed)


def origin_allowed(origin: str, patterns: Sequence[str]) -> bool:
    """`:*` at the end of a pattern stands for any port and for none."""
    asked = origin.lower()
    return any(
        fnmatchcase(asked, pattern.lower()) or asked == pattern.lower().removesuffix(":*")
        for pattern in patterns
    )


def _own_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0]})


async def _failed(request: web.BaseRequest, error: MlxdError, render: Render) -> web.StreamResponse:
    request[STORY].failed(error)
    stream: Begun | None = request.get(STREAM)
    if stream is not None and stream.begun:
        return await stream.fail(error)
    response = error_response(error, render, request[ID])
    request[FAILURE] = Failure(error, render)
    if request.content.exception() is not None:
        # What is left of a body that cannot be read is not waited for, and its end not searched.
        request.content.feed_eof()
        response.force_close()
    return response


def _path_of(request: web.BaseRequest) -> str:
    """For the log: a client's key is nobody's business."""
    return f"{_KEYS}*" if request.path.startswith(_KEYS) else request.path


def _preflight(request: web.BaseRequest) -> web.Response:
    """A page that may ask may send what it likes: clients have headers of their own."""
    allowed = _ALLOWED_HEADERS
    wished = request.headers.get("Access-Control-Request-Headers", "")
    if len(wished) <= _LONGEST_WISH and _NAMES_OF_HEADERS.fullmatch(wished):
        allowed = f"{allowed}, {wished}"
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS",
            "Access-Control-Allow-Headers": allowed,
            "Access-Control-Max-Age": "43200",
        },
    )


def _request_id(request: web.BaseRequest) -> str:
    """The caller's, if it is short printable ASCII; else a new one."""
    return given_id(request.headers.get("X-Request-Id", "")) or new_request_id()


def _host_of(header: str) -> str:
    """The Host header without its port, in lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
