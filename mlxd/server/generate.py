"""The one handler behind every generating endpoint, in whatever dialect.

How a stream is told is in stream.py.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from aiohttp import web

from mlxd.control.dispatch import Asker
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.counts import form, plural
from mlxd.core.errors import InvalidRequest, MlxdError, ResumeExpired
from mlxd.core.events import Completion, collect, collect_all
from mlxd.core.threads import Threads
from mlxd.dialects.base import EVENT_STREAM, Call, Codec
from mlxd.policy.policy_set import PolicySet
from mlxd.server.answers import json_response, large_json_response
from mlxd.server.edge import (
    ID,
    MARKS,
    STORY,
    STREAM,
    caller_of,
    policies_of,
)
from mlxd.server.errors import Render
from mlxd.server.intake import DIGEST, SIZE, read_json
from mlxd.server.parts import Parts
from mlxd.server.quota import note_quota
from mlxd.server.refusals import note_refusal
from mlxd.server.resume import HEADER, Coming
from mlxd.server.stories import begin
from mlxd.server.stream import Stream
from mlxd.server.told import Told

_MOST_SCORED = 2**19
"""Characters of prompts, times the log-probabilities that are told of each token."""
_TOKEN_CHARACTERS = 4
"""Of most languages; a token id counts as so many."""
_threads = Threads("numbers")
PRIORITY_HEADER = "X-Request-Priority"
RETRIES_HEADER = "X-Stainless-Retry-Count"
"""The clients of OpenAI and Anthropic say with it which try a request is."""
_TELLING_APART = (
    "Authorization", "X-Api-Key", "Cookie", "X-Forwarded-For", "Forwarded", "User-Agent",
)  # fmt: skip
"""Headers in which people differ who come from behind one address."""
_OLD_NAMES = {"1": "high", "2": "medium", "3": "low"}
"""As /queue/stats has them, too."""
_NAMES: web.RequestKey[dict[str, str]] = web.RequestKey("names", dict)
_ID_LETTERS = (b"abcdefghijklmnopqrstuvwxyz0123456789" * 8)[:256]
"""One for each byte."""


class Generate:
    """Serves one codec's path."""

    def __init__(self, parts: Parts, codec: Codec, *, rated: bool = True) -> None:
        """`rated`: whether its answers count towards rates; else they are an administrator's, who
        is the owner where there is no key.
        """
        self._parts = parts
        self._rated = rated
        self._codec = codec
        self.render_error: Render = codec.render_error

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        policies = policies_of(request)
        try:
            return await self._serve(request, policies)
        except MlxdError as error:
            _reword(error, request.get(_NAMES, {}))
            note_quota(request, self._parts, policies)
            note_refusal(request, self._parts, error)
            raise

    async def _serve(self, request: web.BaseRequest, policies: PolicySet) -> web.StreamResponse:
        call = _with_category(await self._read(request, policies))
        call = replace(call, request_id=request[ID])
        request[_NAMES] = call.names
        begin(request, self._parts, call)
        _check_choices(call, policies)
        _check_scored(call)
        if call.action == "load":
            dispatcher, wanted = self._parts.dispatcher, call.request
            await dispatcher.load(
                wanted.model, wanted.keep_alive, policies, caller_of(request), story=request[STORY]
            )
        elif call.action == "unload":
            dispatcher, name = self._parts.dispatcher, call.request.model
            await dispatcher.unload(name, policies, caller_of(request), story=request[STORY])
        else:
            return await self._told(call, request, policies)
        answer = self._codec.render_action(call, self._parts.clock.wall())
        return json_response(answer)

    async def _read(self, request: web.BaseRequest, policies: PolicySet) -> Call:
        parse = partial(self._codec.parse, id=new_id(), now=self._parts.clock.wall())
        return await read_json(request, policies, parse)

    async def _told(
        self, call: Call, request: web.BaseRequest, policies: PolicySet
    ) -> web.StreamResponse:
        """The answer to a generation, which may have begun on another connection."""
        resumption, coming = self._parts.resumption, _coming(request, policies)
        told = await resumption.answer_to(coming, call, self._codec)
        try:
            with resumption.telling(told, request[STORY], request.transport):
                call = told.call or call
                if call.request.stream:
                    return await self._streamed(told, call, request, policies)
                completions = await self._completions(told, call, self._asker(request))
        except ResumeExpired:
            stream = request.get(STREAM)
            if coming.event or (stream is not None and stream.begun):
                raise
            return await self._told(call, request, policies)
        return await self._whole(call, completions, request, policies)

    async def _streamed(
        self, told: Told, call: Call, request: web.BaseRequest, policies: PolicySet
    ) -> web.StreamResponse:
        encoder = told.encoder or self._codec.encoder(call)
        stream = Stream(
            self._parts, self._codec, told, request, policies, call=call, encoder=encoder
        )
        return await stream.run(self._asker(request))

    async def _completions(self, told: Told, call: Call, asker: Asker) -> list[Completion]:
        dispatcher, headway = self._parts.dispatcher, told.headway
        if call.more:
            async with dispatcher.open_all(call.requests, asker, headway) as numbered:
                return await collect_all(numbered, told.folds)
        async with dispatcher.open(call.request, asker, headway) as bursts:
            return [await collect(bursts, told.folds[0])]

    async def _whole(
        self,
        call: Call,
        completions: Sequence[Completion],
        request: web.BaseRequest,
        policies: PolicySet,
    ) -> web.StreamResponse:
        note_quota(request, self._parts, policies)
        now = self._parts.clock.wall()
        if call.request.want == "embedding" or call.request.logprobs is not None:
            # which may be millions of numbers
            return await _threads.run_or_here(self._rendered_large, call, completions, now)
        return json_response(self._codec.render(call, completions, now))

    def _asker(self, request: web.BaseRequest) -> Asker:
        """Whoever asks, under the policies of this request; dry runs mark its answer. On the
        endpoint of the owner's own requests, without a key, it is the owner.

        Raises InvalidRequest.
        """
        caller, story = caller_of(request), request[STORY]
        if not self._rated:
            caller = story.caller = replace(caller, owner=not caller.key)
        return Asker(
            caller,
            policies_of(request),
            request[MARKS].add,
            story,
            _priority_of(request),
            rated=self._rated,
        )

    def _rendered_large(
        self, call: Call, completions: Sequence[Completion], now: float
    ) -> web.StreamResponse:
        return large_json_response(self._codec.render(call, completions, now))


def _coming(request: web.BaseRequest, policies: PolicySet) -> Coming:
    tries = request.headers.get(RETRIES_HEADER, "")
    return Coming(
        owner=_owner(request),
        digest=request[DIGEST],
        size=request[SIZE],
        event=request.headers.get(HEADER, "").strip(),
        reads_ids=policies.server.resume.ids == "always" or _asks_for_events(request),
        retried=tries.isascii() and tries.isdigit() and tries.strip("0") != "",
        policies=policies,
        story=request[STORY],
    )


def _asks_for_events(request: web.BaseRequest) -> bool:
    return EVENT_STREAM in ",".join(request.headers.getall("Accept", ())).lower()


def _owner(request: web.BaseRequest) -> str:
    """A key, wherever it is used from. Without one, an address, and what may tell those apart who
    share it: whatever a header says, it gives nobody more than the address does.
    """
    caller, headers = caller_of(request), request.headers
    if caller.key:
        return f"key {caller.key}"
    said = [value for name in _TELLING_APART for value in headers.getall(name, ("",))]
    digest = hashlib.blake2b(repr(said).encode("utf-8", "surrogateescape"), digest_size=12)
    return f"address {caller.address} {digest.hexdigest()}"


def _priority_of(request: web.BaseRequest) -> Priority | None:
    """The class that its header asks for. A word that says none is refused: who believes to be
    served first, and is not, has nobody to tell.
    """
    said = request.headers.get(PRIORITY_HEADER, "").strip().lower()
    if not said:
        return None
    named = _OLD_NAMES.get(said, said)
    for priority in PRIORITIES:
        if named == priority:
            return priority
    raise InvalidRequest(
        f"{PRIORITY_HEADER} {said[:40]!r} names no class; it may be high, medium or low",
        param=PRIORITY_HEADER,
        would_pass=f"{PRIORITY_HEADER}: high, medium or low, or none at all",
    )


def _check_choices(call: Call, policies: PolicySet) -> None:
    """Raises InvalidRequest for more answers than one request may ask for."""
    count, most = len(call.requests), policies.limits.choices
    if call.request.want == "answer" and count > most:
        raise InvalidRequest(
            f"the request asks for {count} answers; at most {most} {form(most, 'is', 'are')} given",
            param=call.plural,
            policy=policies.line("limits.choices"),
            numbers={"asked": count, "allowed": most},
            would_pass=f"at most {plural(most, 'answer')} in one request",
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


def new_id() -> str:
    """A call's own; nobody guesses it."""
    return secrets.token_bytes(24).translate(_ID_LETTERS).decode()
