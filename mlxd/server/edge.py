"""Around every request: its id, the walls, who asks, its one log line, and the one place where an
exception becomes an answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from aiohttp import web

from mlxd.control.turns import Turns
from mlxd.core.caller import Caller
from mlxd.core.clock import Clock
from mlxd.core.errors import (
    AFTER_DRAIN,
    Again,
    Draining,
    InsufficientMemory,
    InternalError,
    MlxdError,
    Overloaded,
    TooManyGuesses,
    Unauthorized,
)
from mlxd.core.story import Story
from mlxd.core.threads import NoThread
from mlxd.policy.policy_set import PolicySet
from mlxd.server.addresses import Addresses
from mlxd.server.connection import Connection
from mlxd.server.errors import (
    STATUS,
    Render,
    error_response,
    given_id,
    identity,
    new_request_id,
    words_for,
)
from mlxd.server.farewells import no_file
from mlxd.server.forwarded import address_of
from mlxd.server.identity import OPEN, Identity
from mlxd.server.parts import Parts
from mlxd.server.walls import check_headers, check_host, headers_for, origin_of, preflight

log = logging.getLogger("mlxd.access")
faults = logging.getLogger(__name__)

_REFUSED = 400
"""The lowest status of a request that is not served."""
_LEFT = 499
"""What stands for the status where the client has gone."""
_RESTART_SECONDS = 5.0
"""What a client is told to wait for the next daemon."""
BELOW = (
    "/api/user/keys/", "/api/blobs/", "/api/models/", "/v1/models/", "/v1/responses/",
    "/ui/assets/",
)  # fmt: skip
"""Paths under which clients put what is theirs."""
_LONGEST_PATH = 200
_LONGEST_METHOD = 20
_LONGEST_NAME = 350
"""Characters that the log has of each."""


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


class Traces(Protocol):
    """Has spans made of requests."""

    def begin(self, request: web.BaseRequest, story: Story) -> None: ...

    def end(self, story: Story, status: int) -> None: ...


Route = Callable[[web.BaseRequest], Endpoint]
Refused = Callable[[web.BaseRequest, web.StreamResponse], None]

ID = web.RequestKey("id", str)
CLOCK: web.RequestKey[Clock] = web.RequestKey("clock")
"""What the time that its client may take is measured by."""
TURNS: web.RequestKey[Turns] = web.RequestKey("turns")
"""Whose long body is parsed next."""
POLICIES = web.RequestKey("policies", PolicySet)
MARKS = web.RequestKey("marks", Marks)
CALLER = web.RequestKey("caller", Caller)
STORY = web.RequestKey("story", Story)
MODEL = web.RequestKey("model", str)
"""As one named it who manages models; for the log."""
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
        addresses: Addresses | None = None,
        traces: Traces | None = None,
    ) -> None:
        """`callers` says who asks; without it, nobody needs a key. `refused` is told of each
        request that was, and of its answer. `addresses` count those that come through proxies.
        """
        self._parts = parts
        self._route = route
        self._walls = walls
        self._callers = callers
        self._refused = refused
        self._addresses = addresses
        self._traces = traces
        self._turns = Turns()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        request[ID] = _request_id(request)
        request[POLICIES] = self._parts.policies.current
        if self._parts.state.draining and isinstance(request.protocol, Connection):
            request.protocol.leaving = True
        request[CALLER] = Caller(address_of(request, policies_of(request)))
        began = self._parts.clock.monotonic()
        request[CLOCK] = self._parts.clock
        request[TURNS] = self._turns
        request[STORY] = story = self._story(request, began)
        request[MARKS] = Marks(partial(self._would_deny, story))
        if self._traces is not None:
            self._traces.begin(request, request[STORY])
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
                request.method[:_LONGEST_METHOD],
                path_of(request.path),
                status,
                extra={
                    "request": request[ID],
                    "seconds": round(self._parts.clock.monotonic() - began, 4),
                    "model": model_of(request, status),
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

    def _would_deny(self, story: Story, rule: str) -> None:
        self._parts.metrics.would_deny(rule)
        story.note("would_deny", rule=rule)

    def _end(self, request: web.BaseRequest, status: int) -> None:
        """Of its story, if it has one."""
        story = request[STORY]
        if status == _LEFT:
            story.note("left")
        self._parts.stories.end(story, status, story.code)
        if self._traces is not None:
            self._traces.end(story, status)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The one edge: whatever went wrong behind it becomes an answer here."""
        render: Render = words_for(request)
        try:
            if self._walls:
                _check_room(request)
                _pass_walls(request)
            if request.method == "OPTIONS":
                return preflight(request)
            with self._counted(request):
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
        except Exception as error:  # noqa: BLE001 - the one edge that answers for everything behind it
            fault = self._replaced(error) or _short_of(error, policies_of(request))
            return await _failed(request, _told(request, fault), render)

    def _replaced(self, error: Exception) -> MlxdError | None:
        """What an upgrade has taken away; None: it is something else."""
        lost = isinstance(error, ImportError | FileNotFoundError)
        if not lost or not (change := self._parts.installed.change()):
            return None
        return Overloaded(
            f"this cannot be answered: {change}",
            retry_after=_RESTART_SECONDS,
            would_pass="the same request once the daemon is restarted",
        )

    def _counted(self, request: web.BaseRequest) -> AbstractContextManager[None]:
        """Raises Overloaded as it is entered."""
        if self._addresses is None:
            return nullcontext()
        return self._addresses.asking(request, policies_of(request))

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
            self._parts.metrics.refused(error.code)
            error.again = self._again(error, request, now)
            raise
        request[CALLER] = request[STORY].caller = caller

    def _again(self, error: MlxdError, request: web.BaseRequest, now: float) -> Again | None:
        """How one would fare again that was not identified.

        A penalty passes, and who sends no key needs one as long as policies stay the same. A key
        that is not known is looked up anew each time: it may be by now, and counts as a guess.
        """
        if isinstance(error, TooManyGuesses):
            clock, until = self._parts.clock, now + (error.retry_after or 0.0)
            return Again(lambda: clock.monotonic() < until, whatever=True)
        headers = policies_of(request).clients.auth.headers
        if any(name in request.headers for name in headers):
            return None
        return Again(lambda: True, whatever=True)

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


def _check_room(request: web.BaseRequest) -> None:
    """Raises Overloaded for what cannot be served with the few files that are left."""
    protocol = request.protocol
    if isinstance(protocol, Connection) and protocol.scarce and request.path not in OPEN:
        raise no_file(policies_of(request))


def _told(request: web.BaseRequest, known: MlxdError | None) -> MlxdError:
    """What is told of what nobody expected, unless its cause is `known`; the log has more."""
    if known is not None:
        faults.warning("request %s: %s", request[ID], known.message)
        return known
    faults.exception("request %s: a defect", request[ID])
    return InternalError("an internal error occurred; the log has it under this id")


def _short_of(error: Exception, policies: PolicySet) -> MlxdError | None:
    """What this process, or the machine, has run out of; None: it is something else."""
    if isinstance(error, NoThread):
        return Overloaded(
            "the system has no thread for this request",
            retry_after=1.0,
            would_pass="the same request once other processes have ended, or with more allowed",
        )
    out_of_files = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    return no_file(policies) if out_of_files else None


def _pass_walls(request: web.BaseRequest) -> None:
    """Raises HeadersTooLarge, Forbidden."""
    policies, on_trial = policies_of(request), request[MARKS].add
    origin = origin_of(request, policies, on_trial)
    if origin is not None:  # first, so that a page may read what else is wrong
        request[ORIGIN] = origin
    check_headers(request, policies)
    check_host(request, policies, on_trial)


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
        headers |= headers_for(request[ORIGIN], policies_of(request).clients.cors)
    return headers


def caller_of(request: web.BaseRequest) -> Caller:
    """Who asks."""
    return request[CALLER]


def client_of(request: web.BaseRequest) -> str:
    """Whose share a request takes, and whose belongings it may touch."""
    return caller_of(request).name


async def _failed(request: web.BaseRequest, error: MlxdError, render: Render) -> web.StreamResponse:
    _let_go(error)
    request[STORY].failed(error)
    stream: Begun | None = request.get(STREAM)
    if stream is not None and stream.begun:
        return await stream.fail(error)
    response = error_response(error, render, request[ID])
    request[FAILURE] = Failure(error, render)
    return response


def model_of(request: web.BaseRequest, status: int) -> str:
    """Its own name, once it is known which model is meant: what a client calls it may say anything.
    Whoever manages models names them, where that is done.
    """
    named: str = request.get(MODEL, "")[:_LONGEST_NAME] if status < _REFUSED else ""
    return named or request[STORY].model


def path_of(path: str) -> str:
    """For the log: without keys, ids and names that clients put there."""
    below = next(filter(path.startswith, BELOW), None)
    return path[:_LONGEST_PATH] if below is None else f"{below}*"


def _let_go(error: BaseException | None) -> None:
    """Of the frames that it came through: they hold the request and its body, and would until
    Python next looks for cycles.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _request_id(request: web.BaseRequest) -> str:
    """The caller's, if it is short printable ASCII; else a new one."""
    return given_id(request.headers.get("X-Request-Id", "")) or new_request_id()
