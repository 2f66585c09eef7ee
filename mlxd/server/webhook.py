"""Posts events to another program: `supervision.events.webhook`.

One task, one event after the other. What it waits for is bounded by the list of events: when the
receiver was away for long, it is told how many it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from mlxd import __version__
from mlxd.core.tasks import tell_defect
from mlxd.core.threads import Threads
from mlxd.dialects.base import to_json
from mlxd.policy import credential
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.supervision import Delivery
from mlxd.server import certificates
from mlxd.telemetry.events import Event, Events, Record

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Posts of one event until it is given up: two minutes."""
_FIRST_SECONDS = 1.0
_MOST_SECONDS = 60.0
_LAST_SECONDS = 1.0
"""For what is left when the daemon ends."""
_URLS = ("http://", "https://")


class _Failed(Exception):
    """Why a post was not taken, in words that hold no secret."""


class Webhook:
    """Works by the policies in force at each attempt."""

    def __init__(self, policies: PolicySet, events: Events, count: Callable[[str], None]) -> None:
        """`count` is told `delivered`, `failed` (an attempt) or `given_up` (an event)."""
        self._delivery: Delivery = policies.supervision.events.webhook
        self._events = events
        self._count = count
        self._threads = Threads("webhook")
        self._reads: dict[str, asyncio.Future[str]] = {}
        """Under way."""
        self._session: aiohttp.ClientSession | None = None
        self._trust: ssl.SSLContext | None = None
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        """Policies have changed, or the daemon ends: do not wait to try again."""
        self._failure = ""
        self._failed_by: Delivery | None = None
        """By what the last post was made that failed."""

    def start(self) -> None:
        """Post what is in the list of events, and what comes."""
        self._task = asyncio.create_task(self._run(), name="webhook")
        self._task.add_done_callback(tell_defect)

    def apply(self, policies: PolicySet) -> None:
        """An event that waits for another attempt is tried at once, if this changes where."""
        before, self._delivery = self._delivery, policies.supervision.events.webhook
        if before != self._delivery:
            self._hurry.set()

    def warnings(self) -> list[str]:
        """Why the last event was not taken, where another would be posted in the same way."""
        if not self._failure or self._delivery.url is None or self._delivery != self._failed_by:
            return []
        return [f"the webhook (supervision.events.webhook) does not take events: {self._failure}"]

    async def close(self) -> None:
        """After the end of `events`: one more attempt for each that is left, if there is time."""
        if self._task is not None:
            self._hurry.set()
            await asyncio.wait({self._task}, timeout=_LAST_SECONDS)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        with self._events.subscribe(since=0) as follower:
            try:
                async for record in follower.records():
                    await self._deliver(record)
            finally:
                if self._session is not None:
                    await self._session.close()

    async def _deliver(self, record: Record) -> None:
        """Until it is taken, or given up, or nobody wants it any more."""
        pause = _FIRST_SECONDS
        for left in range(ATTEMPTS - 1, -1, -1):
            delivery = self._delivery
            wanted = not isinstance(record, Event) or record.type in delivery.events
            if delivery.url is None or not wanted:
                return
            self._hurry.clear()
            try:
                await self._post(delivery, record)
            except _Failed as failed:
                self._count("failed")
                self._failed_by = delivery
                self._tell(str(failed))
            else:
                self._count("delivered")
                self._tell("")
                return
            if not left or self._events.closed:
                break
            await self._wait(pause)
            pause = min(2 * pause, _MOST_SECONDS)
        self._count("given_up")
        log.warning("the webhook was not told of event %s (%s)", record.id, record.type)

    async def _post(self, delivery: Delivery, record: Record) -> None:
        """Raises _Failed."""
        body = to_json(record.as_json())
        try:
            async with asyncio.timeout(float(delivery.timeout)):
                url = await self._url(delivery)
                headers = _headers(record)
                if delivery.secret is not None:
                    key = await self._behind(str(delivery.secret))
                    headers["X-Mlxd-Signature"] = signature(key, body)
                await self._send(url, body, headers)
        except TimeoutError:
            raise _Failed(f"no answer within {delivery.timeout}") from None

    async def _send(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        """Raises _Failed. No redirect is followed: it would take the event elsewhere."""
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=_Resolver(self._threads))
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            if self._trust is None and url.startswith("https:"):
                self._trust = await self._threads.run(certificates.read)
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False, ssl=self._trust or True
            ) as response:
                if not 200 <= response.status < 300:
                    raise _Failed(f"it answered {response.status}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Failed(_reason(error)) from None

    async def _url(self, delivery: Delivery) -> str:
        """Raises _Failed."""
        url = str(delivery.url)
        if not url.startswith(_URLS):
            url = await self._behind(url)
        if not url.startswith(_URLS):
            raise _Failed("its URL is no http or https URL")
        return url

    async def _behind(self, reference: str) -> str:
        """Read at each attempt: a secret may be replaced at any time. Raises _Failed.

        A read that hangs is not begun again.
        """
        try:
            read = self._reads.get(reference)
            if read is None:
                read = self._threads.run(credential.read, reference)
                self._reads[reference] = read
                read.add_done_callback(partial(self._has_read, reference))
            await asyncio.wait({read})
            return read.result()
        except (credential.Unreadable, OSError) as error:
            raise _Failed(f"its URL or secret cannot be read: {error}") from None

    def _has_read(self, reference: str, read: asyncio.Future[str]) -> None:
        del self._reads[reference]
        read.exception()  # nobody may wait for it any more

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    def _tell(self, failure: str) -> None:
        """Once when it begins to fail, once when it works again."""
        if failure and not self._failure:
            log.warning("the webhook does not take events: %s", failure)
        elif self._failure and not failure:
            log.info("the webhook takes events again")
        self._failure = failure


def signature(key: str, body: bytes) -> str:
    """HMAC-SHA256 over the body, as `X-Mlxd-Signature` has it."""
    return f"sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"


def _headers(record: Record) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": f"mlxd/{__version__}",
        "X-Mlxd-Event": record.type,
        "X-Mlxd-Event-Id": str(record.id),
    }


def _reason(error: Exception) -> str:
    """An exception's own words may hold the URL."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


class _Resolver(AbstractResolver):
    """A name server that does not answer holds up no end of the daemon."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError."""
        found: list[Any] = await self._threads.run(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
        )
        return [
            ResolveResult(
                hostname=host, host=address[0], port=address[1], family=kind, proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in found
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing to close."""
