"""The one handler behind every generating endpoint, in whatever dialect.

The status line of a stream waits for the first event, or for `timeouts.first_byte`: until then a
refusal has a status of its own; after that it is the last record of the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from aiohttp import web

from mlxd.control.dispatch import Asker
from mlxd.core.errors import InvalidRequest, MlxdError
from mlxd.core.events import Burst, Completion, Echo, collect, collect_all
from mlxd.core.threads import Threads
from mlxd.dialects.base import Call, Codec
from mlxd.policy.load import PolicySet
from mlxd.server.answers import iso, json_response, large_json_response
from mlxd.server.edge import (
    ID,
    MARKS,
    MODEL,
    QUOTA,
    STORY,
    STREAM,
    caller_of,
    common_headers,
    policies_of,
)
from mlxd.server.errors import Render, speaks_anthropic
from mlxd.server.intake import read_json
from mlxd.server.parts import Parts
from mlxd.server.refusals import note_refusal

_PIECE = 65536
"""Bytes that are given to a client at a time."""
_TAKEN_AT_ONCE = 16384
"""Bytes for which no write waits: where asyncio lets a paused writer go on."""
_EVENTS = 64
"""Encoded at a time: a client that was slow may have many waiting."""
_MOST_SCORED = 2**19
"""Characters of prompts, times the log-probabilities that are told of each token."""
_TOKEN_CHARACTERS = 4
"""Of most languages; a token id counts as so many."""
_MANY_SCORES = 4096
_threads = Threads("numbers")
_NAMES: web.RequestKey[dict[str, str]] = web.RequestKey("names", dict)
_ID_LETTERS = (b"abcdefghijklmnopqrstuvwxyz0123456789" * 8)[:256]
"""One for each byte."""


class Generate:
    """Serves one codec's path."""

    def __init__(self, parts: Parts, codec: Codec) -> None:
        self._parts = parts
        self._codec = codec
        self.render_error: Render = codec.render_error

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        try:
            return await self._serve(request, policies)
        except MlxdError as error:
            _reword(error, request.get(_NAMES, {}))
            _note_quota(request, self._parts, policies)
            note_refusal(request, self._parts.rejections, error)
            raise

    async def _serve(self, request: web.BaseRequest, policies: PolicySet) -> web.StreamResponse:
        call = _with_category(await self._read(request, policies))
        call = replace(call, request_id=request[ID])
        request[MODEL] = call.request.model
        request[_NAMES] = call.names
        _check_choices(call, policies)
        _check_scored(call)
        if call.action == "load":
            dispatcher, wanted = self._parts.dispatcher, call.request
            caller = caller_of(request)
            await dispatcher.load(wanted.model, wanted.keep_alive, policies, caller)
        elif call.action == "unload":
            dispatcher, name = self._parts.dispatcher, call.request.model
            await dispatcher.unload(name, policies, caller_of(request))
        elif call.request.stream:
            return await _Stream(self._parts, self._codec, call, request, policies).run()
        else:
            return await self._whole(call, request, policies)
        answer = self._codec.render_action(call, self._parts.clock.wall())
        return json_response(answer)

    async def _read(self, request: web.BaseRequest, policies: PolicySet) -> Call:
        parse = partial(self._codec.parse, id=new_id(), now=self._parts.clock.wall())
        return await read_json(request, policies, parse)

    async def _whole(
        self, call: Call, request: web.BaseRequest, policies: PolicySet
    ) -> web.StreamResponse:
        dispatcher, asker = self._parts.dispatcher, asker_of(request)
        if call.more:
            async with dispatcher.open_all(call.requests, asker) as numbered:
                completions = await collect_all(numbered, len(call.requests))
        else:
            async with dispatcher.open(call.request, asker) as bursts:
                completions = [await collect(bursts)]
        _note_quota(request, self._parts, policies)
        now = self._parts.clock.wall()
        if call.request.want == "embedding" or call.request.logprobs is not None:
            # which may be millions of numbers
            return await _threads.run(self._rendered_large, call, completions, now)
        return json_response(self._codec.render(call, completions, now))

    def _rendered_large(
        self, call: Call, completions: Sequence[Completion], now: float
    ) -> web.StreamResponse:
        return large_json_response(self._codec.render(call, completions, now))


class _Stream:
    """One streamed answer: its status line, its records, its heartbeat."""

    def __init__(
        self,
        parts: Parts,
        codec: Codec,
        call: Call,
        request: web.BaseRequest,
        policies: PolicySet,
    ) -> None:
        self._parts = parts
        self._codec = codec
        self._call = call
        self._request = request
        self._policies = policies
        self._encoder = codec.encoder(call)
        self._response = web.StreamResponse(
            headers={"Content-Type": codec.content_type, "Cache-Control": "no-cache"}
        )
        self._writing = asyncio.Lock()
        """Held for a whole write: nothing else gets into the middle of a record."""
        self._torn = False
        """A record was begun and given up."""
        self._last_write = 0.0

    async def run(self) -> web.StreamResponse:
        self._request[STREAM] = self
        beat = asyncio.create_task(self._beat(), name=f"beat {self._call.id}")
        try:
            await self._send_records()
        finally:
            beat.cancel()
        await self._response.write_eof()
        return self._response

    @property
    def begun(self) -> bool:
        """The status line is out: a failure can only be said in the stream."""
        return self._response.prepared

    async def fail(self, error: MlxdError) -> web.StreamResponse:
        """Say in the stream that it ends here, and why.

        Raises ConnectionResetError where that would be read as the rest of a record.
        """
        await self._write(self._encoder.fail(error))
        await self._response.write_eof()
        return self._response

    async def _send_records(self) -> None:
        dispatcher, asker = self._parts.dispatcher, asker_of(self._request)
        if self._call.more:
            async with dispatcher.open_all(self._call.requests, asker) as numbered:
                async for choice, burst in numbered:
                    await self._send(burst, choice)
        else:
            async with dispatcher.open(self._call.request, asker) as bursts:
                async for burst in bursts:
                    await self._send(burst, 0)

    async def _send(self, burst: Burst, choice: int) -> None:
        for at in range(0, len(burst), _EVENTS):
            now = self._parts.clock.wall()
            events = burst[at : at + _EVENTS]
            if any(
                isinstance(event, Echo) and len(event.logprobs) > _MANY_SCORES for event in events
            ):
                records = await _threads.run(self._encoder.feed, events, now, choice)
            else:
                records = self._encoder.feed(events, now, choice)
            if records:
                await self._write(records)

    async def _write(self, records: bytes) -> None:
        """Raises ConnectionResetError once the client has left."""
        async with self._writing:
            await self._write_now(records)

    async def _write_now(self, records: bytes) -> None:
        if not self._response.prepared:
            await self._prepare()
        self._last_write = self._parts.clock.monotonic()
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        if self._torn:
            transport.abort()
            raise ConnectionResetError("the last record has no end")
        if not records:
            return
        if transport.get_write_buffer_size() + len(records) <= _TAKEN_AT_ONCE:
            await self._response.write(records)
        else:
            await self._write_slowly(records)
        self._last_write = self._parts.clock.monotonic()

    async def _write_slowly(self, records: bytes) -> None:
        """What waits for the client stays small. One that takes nothing is cut by the server's
        sweep (`timeouts.client_write`): however slow it is, it may go on taking.
        """
        for at in range(0, len(records), _PIECE):
            self._torn = at + _PIECE < len(records)
            await self._response.write(records[at : at + _PIECE])

    async def _prepare(self) -> None:
        _note_quota(self._request, self._parts, self._policies)
        self._response.headers.update(common_headers(self._request))
        await self._response.prepare(self._request)

    async def _beat(self) -> None:
        """Sends the status line when there is nothing to say for long, then a sign of life."""
        interval = float(self._policies.timeouts.first_byte)
        self._last_write = self._parts.clock.monotonic()
        with contextlib.suppress(ConnectionError):
            while True:
                async with self._writing:
                    silence = self._parts.clock.monotonic() - self._last_write
                    if silence >= interval:
                        await self._write_now(self._codec.heartbeat)
                        silence = 0.0
                await asyncio.sleep(interval - silence)


def asker_of(request: web.BaseRequest) -> Asker:
    """Whoever asks, under the policies of this request; dry runs mark its answer."""
    return Asker(caller_of(request), policies_of(request), request[MARKS].add, request[STORY])


def _check_choices(call: Call, policies: PolicySet) -> None:
    """Raises InvalidRequest for more answers than one request may ask for."""
    count, most = len(call.requests), policies.limits.choices
    if call.request.want == "answer" and count > most:
        raise InvalidRequest(
            f"the request asks for {count} answers; at most {most} are given",
            param=call.plural,
            policy=policies.line("limits.choices"),
        )


def _check_scored(call: Call) -> None:
    """Raises InvalidRequest for prompts whose scores would take the daemon long to write."""
    scored = [one for one in call.requests if one.echo and one.logprobs is not None]
    size = sum(
        (len(one.text or "") + _TOKEN_CHARACTERS * len(one.token_ids or ()))
        * (1 + (one.logprobs or 0))
        for one in scored
    )
    if size > _MOST_SCORED:
        raise InvalidRequest(
            f"echo with logprobs takes prompts of {_MOST_SCORED // (1 + (scored[0].logprobs or 0))}"
            f" characters ({_TOKEN_CHARACTERS} for a token id) in all, with each choice",
            param="logprobs",
        )


def _reword(error: MlxdError, names: Mapping[str, str]) -> None:
    """What is wrong with a request is called as the client called it."""
    name = names.get(error.param or "")
    if name is not None:
        prefix = f"{error.param}: "
        if error.message.startswith(prefix):
            error.message = f"{name}: {error.message.removeprefix(prefix)}"
        error.param = name


def _with_category(call: Call) -> Call:
    """A category stands for a chain of models.yaml where no model is named."""
    if call.request.model or not call.category:
        return call
    named = [replace(request, model=call.category) for request in call.requests]
    return replace(call, request=named[0], more=tuple(named[1:]))


def _note_quota(request: web.BaseRequest, parts: Parts, policies: PolicySet) -> None:
    """What the client has left, for the headers of its answer or refusal.

    RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers), and the API's own.
    """
    states = parts.admission.rate_states(caller_of(request), policies)
    if not states:
        return
    state = min(states, key=lambda state: state.remaining)
    reset = max(0, round(state.reset))
    headers = {
        "RateLimit-Policy": f'"{state.name}";q={state.requests};w={round(state.window)}',
        "RateLimit": f'"{state.name}";r={state.remaining};t={reset}',
    }
    if speaks_anthropic(request):
        headers["anthropic-ratelimit-requests-limit"] = str(state.requests)
        headers["anthropic-ratelimit-requests-remaining"] = str(state.remaining)
        headers["anthropic-ratelimit-requests-reset"] = iso(round(parts.clock.wall()) + reset)
    elif request.path.startswith("/v1/"):
        headers["x-ratelimit-limit-requests"] = str(state.requests)
        headers["x-ratelimit-remaining-requests"] = str(state.remaining)
        headers["x-ratelimit-reset-requests"] = f"{reset}s"
    request[QUOTA] = headers


def new_id() -> str:
    """A call's own; nobody guesses it."""
    return secrets.token_bytes(24).translate(_ID_LETTERS).decode()
